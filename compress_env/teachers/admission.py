"""What a module has to be to become a teacher, seen before it is run: `admitted`."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from compress_env.errors import UserError
from compress_env.progress import say
from compress_env.surgery.folding import folded
from compress_env.surgery.rules.cutting import computed
from compress_env.teachers.checkpoints import check_finite

WRAPPED = {DataParallel: "module", DistributedDataParallel: "module"}
COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the network that it wraps."""


def made(factory: Callable[[], Any], name: str, role: str = "teacher") -> nn.Module:
    """The module of a user's factory, called without arguments, for this role. Raises UserError that says what is wrong with it."""
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UserError(
            f"{role} {name!r}: the factory is called without arguments, and it needs some ({error}); write one that needs none, such "
            f"as def make(): return {getattr(factory, '__name__', 'Net')}(...)"
        ) from None
    except ValueError:  # a built-in without a signature
        pass
    try:
        with torch.random.fork_rng():  # what initialises the weights is no business of the caller's random state
            module = factory()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything
        raise UserError(f"{role} {name!r}: the factory raised {raised(error)}; mend it there") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{role} {name!r} returned {type(module).__name__}; it has to return a torch.nn.Module")
    return module


def admitted(module: nn.Module, name: str, progress: bool = False, role: str = "teacher") -> nn.Module:
    """The network that is compressed: the module itself or what a wrapper holds; a copy where weights are `folded` or in other floats.

    Args:
        module: Any; it is not changed.
        name: Its name, for messages.
        progress: Whether to say on standard error that a copy was made.
        role: What it is to be, for messages: a teacher, or a student.

    Raises:
        UserError: If it is TorchScript, cannot be copied, has no parameters or none with values, or some that are not finite.
    """
    done = "compressed" if role == "teacher" else "trained"
    while True:
        inside = next((place for kind, place in WRAPPED.items() if isinstance(module, kind)), "")
        if not inside and [place for place, _ in module.named_children()] == [COMPILED]:
            inside = COMPILED
        if not inside:
            break
        module = module.get_submodule(inside)
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"the {role} {name!r} is TorchScript, whose layers cannot be taken out; give the Python module that it was made from, "
            "with its state dict as weights"
        )
    _check_copied(module, f"the {role} {name!r}")
    module = folded(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not any(True for _ in module.parameters()):
        raise UserError(
            f"the {role} {name!r} has no parameters, so that nothing can be {done}; if it is quantised, give its original"
        )
    for place, value in tensors.items():
        if is_lazy(value):
            raise UserError(f"the {role} {name!r} has a lazy layer without weights ({place}); run it once before it is given")
        if value.is_meta:
            raise UserError(f"the {role} {name!r} has weights without values (meta device, {place}); load them first")
    masks = {n for n, b in module.named_buffers() if not n.rpartition(".")[2].startswith("running_") and not b.isnan().any()}
    check_finite({n: value for n, value in tensors.items() if n not in masks}, f"of the {role} {name!r}")
    other = {str(v.dtype).removeprefix("torch.") for v in tensors.values() if v.is_floating_point() and v.dtype != torch.float32}
    if other:
        module = copy.deepcopy(module).float()
        say(f"the {role} {name!r} is in {' and '.join(sorted(other))}; a copy in float32 is {done}, and so are inputs", progress)
    return module


def _check_copied(module: nn.Module, what: str) -> None:
    """Raises UserError if a module cannot be copied, which is tried without its weights and buffers."""
    try:
        _structure(module, module)
    except Exception as error:  # noqa: BLE001 - anything may be kept in a module
        place = _not_copied(module) or f"its {type(module).__name__}"
        raise UserError(
            f"{what} cannot be copied, which has to be done: {place} does not let it ({type(error).__name__}: {error}); delete that "
            "attribute first, or make it in forward"
        ) from error


def _structure(value: Any, module: nn.Module) -> Any:
    """A copy of anything that a module holds, with the same weights and buffers."""
    return copy.deepcopy(value, {id(t): t for t in [*module.parameters(), *module.buffers(), *computed(module)]})


def _not_copied(module: nn.Module) -> str:
    """The attribute that cannot be copied, with its type in brackets, if it is one alone; of parts before what holds them."""
    for place, part in reversed(list(module.named_modules())):
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                try:
                    _structure(value, module)
                except Exception:  # noqa: BLE001 - as above
                    return f"its {place}.{key} ({type(value).__name__})".replace(" .", " ")
    return ""


def raised(error: BaseException) -> str:
    """An exception in a line: its type, its first line, and the place in the user's own code where it came up."""
    passed = traceback.extract_tb(error.__traceback__)
    frames = [f for f in passed if "site-packages" not in f.filename and "/compress_env/" not in f.filename]
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{f': {text[:300]}' if text else ''}{where}"
