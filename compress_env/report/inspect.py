"""The parts of a teacher that can be compressed, and what that saves: `inspect`, as rows, as text, and as a picture (`tree.py`)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
from torch import nn

from compress_env.contexts import one_thread
from compress_env.errors import UserError
from compress_env.progress import announced
from compress_env.registry import unknown
from compress_env.report.formats import fit_name, html_table
from compress_env.resources.base import amount
from compress_env.resources.cost_model import CostModel
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.running import data_of, example_of, input_shape_of, run_teacher
from compress_env.search.result import ResourceName
from compress_env.spec import ProblemSpec
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.ir import Group
from compress_env.teachers import load_teacher

PARTS = ("weights", "data", "image_size", "resources", "protect", "removable", "shrinkable", "channel_multiple", "min_width")
SETTINGS = (*PARTS, "runtime", "latency_batch", "latency_threads")
"""Fields of `ProblemSpec` that tell parts and costs."""
TIED = "it is tied to a layer that stays as it is"
NOT_REMOVABLE = "not removable: "
NOTE = (
    "Percentages: what goes with a block if it is removed, or with a group at its fewest channels, as a share of the teacher's "
    "usage. Blocks and groups overlap, so their shares do not add up."
)


@dataclass(frozen=True)
class TreeRow:
    """A block, a group, or a layer that stays.

    Attributes:
        name: Its name.
        kind: "branch", "region" or "chain" (blocks, as in `surgery.graph.Block`), "group" or "stays".
        depth: How many blocks it lies in.
        layers: How many vanish with the block, or produce the group's channels.
        channels: Of a group, all and those that `shares` are of: the fewest, or in a report half.
        shares: By resource, the share of the teacher's usage that goes with it; below 0 where a repair costs more than it saves.
    """

    name: str
    kind: str
    depth: int
    layers: int
    channels: tuple[int, int] | None
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Inspection:
    """A teacher taken apart.

    Attributes:
        teacher: Its name.
        input_shape: Of one input, without the batch.
        layers: How many layers it has.
        rows: The network as a tree, parents first.
        usage: The teacher's, by resource, in its unit.
        smallest: The smallest that is reachable, likewise.
        only_shrink: Layers that cannot be removed, with the reason.
        stays: Layers that can be neither removed nor shrunk, with the reason.
        runtime: The runtime that resources were measured with, if any were.
    """

    teacher: str
    input_shape: tuple[int, ...]
    layers: int
    rows: Sequence[TreeRow]
    usage: Mapping[str, float]
    smallest: Mapping[str, float]
    only_shrink: Mapping[str, str]
    stays: Mapping[str, str]
    runtime: str = ""

    def __str__(self) -> str:
        return text(self)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    def _repr_html_(self) -> str:
        (head, *rows), (limits, *smallest) = _parts(self), _limits(self)
        indented = [["\u2003" * row.depth + row.name, *cells[1:]] for row, cells in zip(self.rows, rows)]
        return html_table(head, indented, f"{_what(self)}. {NOTE}") + html_table(limits, smallest)


def inspect(
    teacher: Any = "resnet8-digits",
    input_shape: Sequence[int] | None = None,
    *,
    progress: bool = False,
    **settings: Any,
) -> Inspection:
    """The parts of a teacher that can be removed or shrunk, what that saves, what is left alone and why, and how small it can get.

    Args:
        teacher: A module, a name, `module:factory` or `file.py:factory`.
        input_shape: Of one input, without the batch; either it or data tells it, shipped teachers know it.
        progress: Whether to show on standard error how far it is.
        settings: Fields of `ProblemSpec` that tell parts and costs (`SETTINGS`), such as `protect`, or `resources=("latency",)` to
            measure it, too. Of data, a few inputs are used.

    Raises:
        UserError: If something cannot be used.
    """
    for name in settings:
        if name not in SETTINGS:
            raise UserError(f"inspect: {unknown('argument', name, list(SETTINGS))}")
    spec = ProblemSpec.of(teacher=teacher, input_shape=input_shape, **settings)
    loaded = load_teacher(spec.teacher, spec.weights, progress)
    runtime = RuntimeConfig(spec.runtime, spec.latency_batch, spec.latency_threads)
    if spec.image_size is not None and spec.data is None:
        raise UserError("an image size is for data; give the input shape alone, for example 3,224,224")
    known = input_shape_of(spec, loaded)
    data = data_of(spec, loaded, progress) if known is None and spec.data is not None else None
    with one_thread():
        running = run_teacher(spec, loaded, None, data, example_of(spec, loaded, data), progress)
        graph, example = running.graph, running.example[:2]
        with announced(f"measuring {loaded.name}", progress):
            cost_model = CostModel(running.module, graph, example, spec.resources, runtime, progress)
            smallest = _smallest(running.module, graph, cost_model)
            blocks, groups = shares(graph, cost_model)
    only_shrink, stays = left_alone(graph)
    rows = tree(graph, blocks, groups, stays)
    return Inspection(
        loaded.name, graph.input_shape, len(graph.layers), rows, dict(cost_model.teacher), smallest, only_shrink, stays,
        runtime.label if cost_model.measured else "",
    )  # fmt: skip


def shares(
    graph: LayerGraph, cost_model: CostModel, narrow: Callable[[Group], int] = attrgetter("floor")
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """By block and by group, for each resource: 1 - usage without the block, or with the group at a width / the teacher's.

    Args:
        graph: Of the teacher.
        cost_model: Predicts usage.
        narrow: The width of a group; its fewest channels if absent.
    """

    def saved(removed: frozenset[str], widths: np.ndarray) -> dict[str, float]:
        usage = cost_model.predict_all(removed, widths)
        return {name: 1 - usage[name] / whole if whole else 0.0 for name, whole in cost_model.teacher.items()}

    groups = {}
    for i, (name, group) in enumerate(graph.groups.items()):
        widths = graph.full.copy()
        widths[i] = narrow(group)
        groups[name] = saved(frozenset(), widths)
    return {name: saved(frozenset([name]), graph.full) for name in graph.blocks}, groups


def left_alone(graph: LayerGraph) -> tuple[dict[str, str], dict[str, str]]:
    """Layers that can only shrink, and those that stay as they are, each with the reason, in order of computation."""
    inside = {name for block in graph.blocks.values() for name in block.layers}
    narrow = {graph.layer_of(name).name for group in graph.groups.values() for name in _produced_by(group)}
    only_shrink, stays = {}, {}
    for name, layer in graph.layers.items():
        reason = graph.left_alone.get(name)
        if name in narrow:
            if reason:
                only_shrink[name] = reason.removeprefix(NOT_REMOVABLE)
        elif reason or (name not in inside and layer.kind != "norm" and not layer.outputs.parts):
            stays[name] = reason or TIED
    return only_shrink, stays


def tree(graph: LayerGraph, blocks: Mapping, groups: Mapping, stays: Mapping[str, str]) -> list[TreeRow]:
    """Rows in order of computation; what vanishes with a block comes right below it. `blocks`, `groups`: as of `shares`."""
    position = {name: i for i, name in enumerate(graph.layers)}
    inside = {name for block in graph.blocks.values() for name in block.layers}
    entries = [(frozenset(u.layers), TreeRow(n, u.kind, 0, len(u.layers), None, blocks[n])) for n, u in graph.blocks.items()]
    for n, g in graph.groups.items():
        own = _produced_by(g)
        row = TreeRow(n, "group", 0, len(own), (g.size, g.floor), groups[n])
        entries.append((frozenset(graph.layer_of(layer).name for layer in own), row))
    entries += [(frozenset([n]), TreeRow(n, "stays", 0, 1, None, {})) for n in stays if n not in inside]
    entries.sort(key=lambda e: (min(position[n] for n in e[0]), e[1].kind == "group", -len(e[0])))

    def within(layers: frozenset[str], entries: list, depth: int) -> list[TreeRow]:
        rows, rest = [], [e for e in entries if e[0] <= layers]
        while rest:
            (own, row), *rest = rest
            rows.append(replace(row, depth=depth))
            if row.kind not in ("group", "stays"):
                rows += within(own, rest, depth + 1)
                rest = [e for e in rest if not e[0] <= own]
        return rows

    return within(frozenset(graph.layers), entries, 0)


def text(found: Inspection, width: int = 100) -> str:
    """Lines of at most `width` characters, unless numbers leave less than 12 of them to names; long names lose their beginning."""
    lines = [*textwrap.wrap(_what(found), width), "", *_columns(_parts(found), width), "", *textwrap.wrap(NOTE, width)]
    for title, reasons in (("Can shrink, but not be removed", found.only_shrink), ("Stays as it is", found.stays)):
        if reasons:
            lines += ["", title, *_reasons(reasons, width)]
    measured = [f"measured with: {found.runtime}"] if found.runtime else []
    return "\n".join([*lines, "", *_columns(_limits(found), width), *measured])


def _what(found: Inspection) -> str:
    """How much can be removed and shrunk."""
    blocks = sum(row.kind not in ("group", "stays") for row in found.rows)
    groups = sum(row.kind == "group" for row in found.rows)
    what = f"{_count(blocks, 'block')} can be removed and {_count(groups, 'group')} of channels can shrink"
    shape = "x".join(map(str, found.input_shape))
    return f"{found.teacher}, inputs of {shape}: {what}" if blocks or groups else f"{found.teacher}: nothing to compress"


def _parts(found: Inspection) -> list[tuple[str, ...]]:
    """The table of parts and what each saves."""
    resources = list(found.usage)
    table: list[tuple[str, ...]] = [("", "kind", "layers", "channels", *resources)]
    for row in found.rows:
        channels = f"{row.channels[0]} to {row.channels[1]}" if row.channels else ""
        saved = (f"{row.shares[r]:.1%}" if r in row.shares else "" for r in resources)
        table.append(("  " * row.depth + row.name, row.kind, str(row.layers), channels, *saved))
    return table


def _limits(found: Inspection) -> list[tuple[str, ...]]:
    """The table of the smallest budgets."""
    table: list[tuple[str, ...]] = [("budget", "unit", "teacher", "smallest", "")]
    for r, whole in found.usage.items():
        least = found.smallest[r]
        table.append((r, ResourceName.of(r).unit, amount(whole), amount(least), f"{least / whole:.1%}" if whole else ""))
    return table


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _columns(table: list[tuple[str, ...]], width: int) -> list[str]:
    """Columns two spaces apart, the first two to the left; the first gives way where the line would be too long."""
    first, second, *numbers = ([*column] for column in zip(*table))
    rest = [max(map(len, column)) for column in (second, *numbers)]
    room = min(max(map(len, first)), max(12, width - sum(rest) - 2 * len(rest)))
    lines = []
    for name, kind, *values in table:
        indent = len(name) - len(name.lstrip())
        label = name[:indent] + fit_name(name[indent:], room - indent)
        cells = (f"{v:>{w}}" for v, w in zip(values, rest[1:]))
        lines.append("  ".join((f"{label:{room}}", f"{kind:{rest[0]}}", *cells)).rstrip())
    return lines


def _reasons(reasons: Mapping[str, str], width: int) -> list[str]:
    """A paragraph a reason, with the layers that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        line
        for reason, names in by_reason.items()
        for line in textwrap.wrap(
            f"{', '.join(names)}: {reason}",
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    ]


def _produced_by(group: Group) -> frozenset[str]:
    """Layers that produce the group's channels; if all vanish, so does it."""
    return frozenset(m.layer for m in group.members if m.side == "out")


def _smallest(module: nn.Module, graph: LayerGraph, cost_model: CostModel) -> dict[str, float]:
    """The smallest reachable usage of each resource: of all blocks gone or none, at the fewest channels, as `Problem.smallest`."""
    plans = [graph.canonical(removed, graph.floor) for removed in (frozenset(graph.blocks), frozenset[str]())]
    counted = [cost_model.count(build_student(module, graph, plan), plan) for plan in dict.fromkeys(plans)]
    return {name: min(usage[name] for usage in counted) for name in cost_model.teacher}
