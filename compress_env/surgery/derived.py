"""Layers of types derived from those that rules are for: what such a rule says holds, or the layer is left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.surgery.rules import differs, leave_alone, rule_of
from compress_env.surgery.rules.base import first

EXAMPLES = 2
"""Inputs on which a layer is compared with what its rule says."""
TOLERANCE = 1e-2
"""Difference of outputs, as a share of the largest, up to which they are taken for rounding, in mixed precision."""


def check_derived(model: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Run the network once, and mark those of its layers that compute something of their own, so that they keep their widths."""
    asked = [m for m in model.modules() if rule_of(m).leaf and rule_of(m).sides and differs(m)]
    if not asked:
        return
    done: set[nn.Module] = set()

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module not in done:  # at once, because what comes behind it may write to what it gave
            done.add(module)
            if not rule_of(module).holds(module, args, kwargs, output):
                leave_alone(module)

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in asked]
    try:
        with torch.no_grad():
            model(*(x.clone() for x in examples))
    except Exception:  # noqa: BLE001 - whoever traces it says that it does not run
        return
    finally:
        for each in hooks:
            each.remove()


@torch.no_grad()
def fits(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> bool:
    """Whether a layer has weights that a regression can find: what it gave is what its rule makes of these and of what it read.

    Not so where a layer of a derived type pads in a way of its own, say, or standardises its weights.
    """
    rule = rule_of(module)
    if rule.fitted(module) is None or not differs(module):
        return rule.fitted(module) is not None
    found = rule.formula(module, first(args, kwargs)[:EXAMPLES])
    if found is None or not isinstance(output, Tensor) or found.shape != output[:EXAMPLES].shape:
        return False
    return bool((found - output[:EXAMPLES]).abs().max() <= TOLERANCE * output[:EXAMPLES].abs().max())
