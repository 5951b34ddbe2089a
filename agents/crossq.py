"""CrossQ (Bhatt et al., ICLR 2024): batch normalisation in the critic in place of target networks."""

from compress_env.agents.sb3 import OffPolicyAgent


def crossq(env, episodes: int, seed: int, **settings) -> OffPolicyAgent:
    """As SAC; its critics are small here, since wide ones with batch normalisation are slow on CPUs."""
    networks = {"net_arch": {"pi": [128, 128], "qf": [256, 256]}}
    return OffPolicyAgent(
        "CrossQ", env, episodes, seed, **{"noise": None, "ent_coef": 0.1, "policy_kwargs": networks, **settings}
    )
