"""`Structure`: the operations, layers, blocks and groups of a teacher, and its costs as compiled from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from compress_env.surgery.costs import Costs
from compress_env.surgery.ir import Block, Group, Layer, Op


@dataclass(frozen=True, eq=False)
class Structure:
    """The parts of a network, each by name and in the order of computation.

    Attributes:
        ops: The operations.
        output: Name of the operation that gives the logits.
        layers: The layers with weights.
        blocks: The blocks that can be removed.
        groups: The groups that can be shrunk.
    """

    ops: Mapping[str, Op]
    output: str
    layers: Mapping[str, Layer]
    blocks: Mapping[str, Block]
    groups: Mapping[str, Group]

    @cached_property
    def group_index(self) -> dict[str, int]:
        """For each group its place in vectors of widths."""
        return {name: i for i, name in enumerate(self.groups)}

    @cached_property
    def costs(self) -> Costs:
        """The cost model, compiled."""
        return Costs(self.ops, self.layers, self.blocks.values(), self.group_index, self.output)
