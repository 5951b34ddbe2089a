"""The uniform student: nothing removed, all widths by the same share. One evaluation."""

import numpy as np

from compress_env.agents.sequence import Baseline


class _Uniform(Baseline):
    def proposals(self, rng):
        yield np.zeros((self.steps, 2))


def uniform(env, episodes: int, seed: int) -> Baseline:
    """The action 0 everywhere, which keeps every block and the share of channels that meets the budget."""
    return _Uniform(env, episodes, seed)
