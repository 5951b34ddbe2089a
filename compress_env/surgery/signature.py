"""A short name for a layer graph."""

from __future__ import annotations

import hashlib

from compress_env.surgery.graph import LayerGraph


def signature(graph: LayerGraph) -> str:
    """16 hexadecimal digits: they differ where operations, costs, or the meaning of a plan differ, but not with weights or ranking."""
    parts = [graph.input_shape, list(graph.ops.values()), list(graph.layers.values()), str(graph.fx_graph)]
    parts += [(b.name, b.kind, b.node, b.replacement) for b in graph.blocks.values()]
    parts += [(g.name, g.size, g.step, g.floor) for g in graph.groups.values()]
    parts += [(sorted(graph.optional), [g.most for g in graph.groups.values()])] if graph.optional else []
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
