"""Ways to rank the channels of groups, one file each; a user's own is registered in `RANKINGS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, fx

from compress_env.registry import Registry
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Ranking
from compress_env.surgery.ranking import magnitude, reconstruction

__all__ = ["RANKINGS", "Ranker", "Ranking", "rank_channels"]


class Ranker(Protocol):
    """A way to rank channels: a module, or an object, with these two attributes.

    Attributes:
        NEEDS_INPUTS: Whether `rank` looks at images; where it does not, no data is loaded for it.
    """

    NEEDS_INPUTS: bool

    @staticmethod
    def rank(teacher: fx.GraphModule, graph: LayerGraph, inputs: Tensor | None) -> Ranking:
        """Rank the channels of the groups of `graph`.

        Args:
            teacher: The student of the empty plan, which computes what the teacher does.
            graph: The teacher's graph; it is not changed.
            inputs: Images `(n, ...)` on the teacher's device, or None where `NEEDS_INPUTS` is false.
        """


RANKINGS = Registry("ranking")
RANKINGS.register("magnitude")(magnitude)
RANKINGS.register("reconstruction")(reconstruction)


def rank_channels(
    name: str, teacher: fx.GraphModule, graph: LayerGraph, inputs: Callable[[], Tensor]
) -> Ranking:
    """Rank channels in a registered way.

    Args:
        name: A name in `RANKINGS`, or `module:attribute` of a `Ranker`.
        teacher: The student of the empty plan.
        graph: The teacher's graph.
        inputs: Gives images `(n, ...)`; called only if the ranking needs them.

    Returns:
        The ranking; `graph.ranked` applies it.

    Raises:
        UserError: If there is no ranking of this name.
    """
    ranker: Ranker = RANKINGS.get(name)
    return ranker.rank(teacher, graph, inputs() if ranker.NEEDS_INPUTS else None)
