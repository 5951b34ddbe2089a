"""Ways to rank the channels of groups, one file each; a user's own is registered in `RANKINGS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import Tensor, fx

from compress_env.errors import UserError
from compress_env.registry import Registry
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Ranking
from compress_env.surgery.ranking import magnitude, reconstruction

__all__ = ["RANKINGS", "Ranker", "Ranking", "load_ranker", "rank_channels"]


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


def load_ranker(spec: Any) -> Ranker:
    """A way to rank channels by its name, as `module:attribute` or `file.py:attribute`, or as an object; a class is called first.

    Raises:
        UserError: If there is none of this name, or it lacks something that `Ranker` has.
    """
    found = RANKINGS.get(spec) if isinstance(spec, str) else spec
    if isinstance(found, type) and not isinstance(vars(found).get("rank"), staticmethod):
        try:
            found = found()
        except TypeError as error:
            raise UserError(f"the ranking {spec!r} cannot be made, without arguments: {error}") from error
    if not isinstance(getattr(found, "NEEDS_INPUTS", None), bool) or not callable(getattr(found, "rank", None)):
        raise UserError(f"the ranking {spec!r} needs NEEDS_INPUTS, true or false, and rank(teacher, graph, inputs)")
    return found


def rank_channels(
    spec: Any, teacher: fx.GraphModule, graph: LayerGraph, inputs: Callable[[], Tensor]
) -> Ranking:
    """Rank channels in a registered way.

    Args:
        spec: As `load_ranker` takes it.
        teacher: The student of the empty plan.
        graph: The teacher's graph.
        inputs: Gives images `(n, ...)`; called only if the ranking needs them.

    Returns:
        The ranking; `graph.ranked` applies it.

    Raises:
        UserError: If there is no ranking of this name, or what it gives is none of this graph.
    """
    ranker = load_ranker(spec)
    found = ranker.rank(teacher, graph, inputs() if ranker.NEEDS_INPUTS else None)
    if not isinstance(found, Ranking):
        raise UserError(f"the ranking {spec!r} gives {type(found).__name__}; it has to give a compress_env.surgery.ranking.Ranking")
    for name, order in found.orders.items():
        if name not in graph.groups or sorted(np.asarray(order).tolist()) != list(range(graph.groups[name].size)):
            size = graph.groups[name].size if name in graph.groups else 0
            raise UserError(
                f"the ranking {spec!r} orders the group {name!r} wrongly: it needs each of its {size} channels once"
                if size else f"the ranking {spec!r} orders {name!r}, which is no group of this teacher"
            )  # fmt: skip
    return found
