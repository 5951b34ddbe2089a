"""Random search: every action uniform in [-1, 1]. Whatever learns has to beat it."""

from compress_env.agents.sequence import Baseline


class _Random(Baseline):
    def proposals(self, rng):
        while True:
            yield rng.uniform(-1, 1, (self.steps, 2))


def random(env, episodes: int, seed: int) -> Baseline:
    """Independent students, drawn within the budget."""
    return _Random(env, episodes, seed)
