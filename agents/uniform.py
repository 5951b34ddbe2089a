"""The uniform student: nothing removed, all widths by the same share. One evaluation."""

import numpy as np

from compress_env.agents.sequence import BatchAgent, Batches


class Uniform(BatchAgent):
    """The action 0 everywhere, which keeps every block and the share of channels that meets the budget."""

    def batches(self, rng: np.random.Generator) -> Batches:
        """One student."""
        yield [np.zeros((self.steps, 2))]


uniform = Uniform
