"""Why each layer was kept or cut: what was decided of each part of the teacher, what that costs alone, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compress_env.allocation.sensitivities import Sensitivities
from compress_env.report.formats import is_number
from compress_env.report.inspect import TreeRow
from compress_env.report.parts import Parts
from compress_env.surgery.plan import Plan

HALF = 0.5
REMOVED, NARROWED, KEPT, STAYS = "removed", "narrowed", "kept", "stays"


@dataclass(frozen=True)
class DecisionRow:
    """A decision, beside what it was made of. KL: of the refitted student to the teacher, in nats, all else being as in the teacher.

    Attributes:
        name: Of the block, the group or the layer that stays.
        depth: How many blocks it lies in.
        status: One of REMOVED, NARROWED, KEPT and STAYS.
        text: The decision in words.
        cut: KL with the block removed, or the group at half of its channels; None if it is not known.
        saves: The share of a resource that goes with that; None if it is not known.
        paid: KL of what was decided.
    """

    name: str
    depth: int
    status: str
    text: str
    cut: float | None = None
    saves: float | None = None
    paid: float | None = None


def decision_rows(
    plan: Plan, parts: Parts | None, known: Sensitivities | None, sizes: Mapping[str, int], resource: str
) -> list[DecisionRow]:
    """A row a decision, in order of computation; groups that vanish with a removed block are left out.

    Args:
        plan: What was decided.
        parts: The teacher's; of older runs, which have none, the order is that of the sensitivities.
        known: Sensitivities, where the search had any.
        sizes: How many channels groups have.
        resource: The one to be saved.
    """
    removed = plan.switched
    widths, rows = dict(plan.widths), []
    for row in _outside(parts.rows if parts else _named(known, sizes), removed):
        saves = row.shares.get(resource)
        if row.kind == "stays":
            rows.append(DecisionRow(row.name, row.depth, STAYS, f"stays: {parts.stays.get(row.name, '') if parts else ''}"))
        elif row.kind != "group":
            cut = known.blocks.get(row.name) if known else None
            gone = row.name in removed
            rows.append(DecisionRow(row.name, row.depth, REMOVED if gone else KEPT, "removed" if gone else "kept", cut, saves,
                                    cut if gone else None))  # fmt: skip
        else:
            size = row.channels[0] if row.channels else sizes.get(row.name, 0)
            width = widths.get(row.name, size)
            status = NARROWED if width < size else KEPT
            text = f"{size} → {width} channels" if width < size else f"all {size} channels" if size else "all channels"
            curve = known.curve(row.name, size) if known and size and row.name in known.groups else None
            narrow = row.channels[1] if row.channels else int(HALF * size)
            cut = None if curve is None else float(curve[narrow])
            paid = float(curve[width]) if curve is not None and width < size else None
            rows.append(DecisionRow(row.name, row.depth, status, text, cut, saves, paid))
    return rows


def total(rows: Sequence[DecisionRow]) -> float | None:
    """What all decisions cost if each costs what it does alone, in nats; None if that is not known."""
    paid = [row.paid for row in rows if row.status in (REMOVED, NARROWED)]
    return sum(filter(is_number, paid)) if paid and all(map(is_number, paid)) else None


def _outside(rows: Sequence[TreeRow], removed: frozenset[str]) -> Iterator[TreeRow]:
    """The rows that are not within a removed block."""
    within: int | None = None
    for row in rows:
        if within is not None and row.depth > within:
            continue
        within = row.depth if row.kind != "group" and row.name in removed else None
        yield row


def _named(known: Sensitivities | None, sizes: Mapping[str, int]) -> list[TreeRow]:
    """Rows of sensitivities alone: groups below the block that their name begins with."""
    rows: list[TreeRow] = []
    if known is None:
        return rows
    left = dict(known.blocks)
    for group in known.groups:
        own = [b for b in left if group == b or group.startswith(f"{b}.")]
        rows += [TreeRow(b, "block", 0, 0, None, {}) for b in own]
        inside = any(group == b or group.startswith(f"{b}.") for b in known.blocks)
        size = sizes.get(group, 0)
        rows.append(TreeRow(group, "group", int(inside), 0, (size, int(HALF * size)) if size else None, {}))
        for b in own:
            del left[b]
    return rows + [TreeRow(b, "block", 0, 0, None, {}) for b in left]
