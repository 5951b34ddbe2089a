"""Truncated quantile critics (Kuznetsov et al., ICML 2020)."""

from compress_env.agents.sb3 import OffPolicyAgent


def tqc(env, episodes: int, seed: int, **settings) -> OffPolicyAgent:
    """As SAC, with critics that learn the distribution of returns and leave its top out, against too much optimism."""
    return OffPolicyAgent("TQC", env, episodes, seed, **{"noise": None, "tau": 0.01, "ent_coef": 0.1, **settings})
