"""Weights as trainers write them: found in a checkpoint whatever is around them, checked, and loaded. No pickled code is run."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import types
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compress_env.errors import UserError
from compress_env.progress import say

State = dict[str, Tensor]

PLAIN: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath, np.ndarray, np.dtype,
    *(value.__reduce__()[0] for value in (np.zeros(0), np.float64(0))),
    *(type(np.dtype(kind)) for kind in ("bool", "float32", "float64", "int32", "int64")),
]  # fmt: skip
"""What trainers keep beside weights (arguments, a best accuracy, paths); these hold values and run nothing when they are made."""

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema_model_state_dict", "ema", "params_ema")
USUAL = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "module", "params", "weights")
"""Keys of averaged weights, which are better than the last ones, and of the others. In a checkpoint with both, the first that fit are
taken (the convention of timm's `load_state_dict`)."""
COUNTERS = ("n_averaged", "total_ops", "total_params", "num_batches_tracked")
"""Tensors that averaging and counting tools leave in a state dict, or older versions left out; they are no weights."""
WRAPPERS = ("_orig_mod", "module")
"""What `torch.compile` and `DataParallel` put into names."""
DEPTH = 4

NO_STATE_DICT = "save it with torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class _Found:
    """Weights in a checkpoint.

    Attributes:
        state: By name.
        keys: The keys that lead to them.
        prefix: What was taken off the names.
        left: Names that are not the network's.
    """

    state: State
    keys: tuple[str, ...]
    prefix: str = ""
    left: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Which is taken first."""
        return _rank((*self.keys, *self.prefix.split(".")))

    def __str__(self) -> str:
        parts = [".".join(self.keys) or "all tensors"]
        if self.prefix:
            parts.append(f"without the prefix {self.prefix!r}")
        if self.left:
            parts.append(f"without {_few(self.left)}, which {'is' if len(self.left) == 1 else 'are'} not the network's")
        return ", ".join(parts)


def load_weights(module: nn.Module, path: Path, progress: bool = False) -> None:
    """Load a safetensors file, a state dict or a training's checkpoint saved by torch into `module`.

    Averaged weights are taken before others, and prefixes of wrappers are taken off. No pickled code is run.

    Args:
        module: Takes the weights, in its own type of numbers.
        path: The file.
        progress: Whether to say on standard error what was chosen of a checkpoint.

    Raises:
        UserError: If the file cannot be read, holds no weights of the module, or some that are not finite; `module` is unchanged.
    """
    content = _read(path)
    candidates = list(_state_dicts(content))
    if not candidates:
        raise UserError(f"{path} holds no state dict{_holds(content)}; {NO_STATE_DICT}")
    own = {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    fitting = [found for keys, state in candidates for found in _fits(state, keys, own)]
    if not fitting:
        keys, state = min(candidates, key=lambda each: _rank(each[0]))
        raise UserError(f"weights in {path}{_at(keys)} are not {type(module).__name__}'s: {_difference(_nearest(state, own), own)}")
    chosen, *others = sorted(fitting, key=lambda each: each.rank)
    if others and chosen.rank == others[0].rank:
        raise UserError(
            f"{path} has several networks that fit {type(module).__name__}: {chosen}; {others[0]}. Save the state dict of one alone"
        )
    check_finite(chosen.state, f"in {path}")
    if chosen.keys or chosen.prefix or chosen.left:
        epoch = content.get("epoch") if isinstance(content, Mapping) else None
        say(f"weights of {path.name}: {chosen}{f', of epoch {epoch}' if isinstance(epoch, int) else ''}", progress)
    module.load_state_dict({**module.state_dict(), **chosen.state})


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Look whether weights are numbers, before anything is done with them.

    Args:
        state: Parameters and buffers by name. Infinite values are allowed in buffers that a normalisation does not own, such as masks.
        where: Words for the message, such as "in net.pt".

    Raises:
        UserError: That names the first tensor that is not finite.
    """
    wrong = [name for name, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]
    if wrong:
        count = int((~torch.isfinite(state[wrong[0]])).sum())
        more = f", and so have {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
        raise UserError(
            f"the weights {wrong[0]} {where} have {count} of {state[wrong[0]].numel()} values that are NaN or infinite{more}: the "
            "training diverged, or the file was damaged; give an earlier checkpoint"
        )


def _read(path: Path) -> Any:
    """The content of a file. Raises UserError that says what the file is where that is known."""
    if path.is_dir():
        inside = sorted(str(p) for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"))
        raise UserError(f"the weights {path} are a folder; give the file itself{f', for example {inside[0]}' if inside else ''}")
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    if path.stat().st_size == 0:
        raise UserError(f"cannot read weights from {path}: it is empty; give another checkpoint")
    kind = _foreign(path)
    if kind:
        raise UserError(f"cannot read weights from {path}: it is {kind}, which is a whole network and no state dict; {NO_STATE_DICT}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"cannot read weights from {path}: {_unpickling(error)}") from error
    except Exception as error:  # noqa: BLE001 - torch.load raises almost anything for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read weights from {path}: {reason}; it is damaged, or neither a safetensors file nor a state dict of tensors "
            "saved by torch.save"
        ) from error


def _foreign(path: Path) -> str:
    """The kind of a file that holds a whole network in another form, or ""."""
    with path.open("rb") as file:
        head = file.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        return "an HDF5 file, as Keras writes it"
    if path.suffix == ".onnx":
        return "an ONNX file"
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return "TorchScript"
    return "an exported program of torch.export" if any(name.endswith("/archive_format") for name in names) else ""


def _unpickling(error: Exception) -> str:
    """The reason for which a pickle is refused, and the cure."""
    text = str(error)
    marker = "GLOBAL "
    name = text.partition(marker)[2].split()[0] if marker in text and text.partition(marker)[2].split() else ""
    if not name:
        return "it is damaged; it has to be a state dict of tensors saved by torch.save"
    return (
        f"it has a pickled {name.rstrip('.')}, which would run code when it is opened; it has to be a state dict of tensors saved by "
        "torch.save: open it where it was made, and save the weights alone with torch.save(model.state_dict(), path)"
    )


def _state_dicts(content: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Mappings from names to tensors in what a file holds, with the keys that lead to them."""
    if not isinstance(content, Mapping) or len(keys) > DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors and len(tensors) >= len(content) / 2:
        yield keys, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _state_dicts(value, (*keys, key))


def _fits(state: State, keys: tuple[str, ...], own: State) -> Iterator[_Found]:
    """The ways in which tensors are the network's: as they are, without the words of wrappers, or without a prefix of all names."""
    for words in ((), WRAPPERS[:1], WRAPPERS[1:], WRAPPERS):
        renamed = {".".join(part for part in name.split(".") if part not in words): name for name in state}
        if len(renamed) < len(state) or (words and list(renamed) == list(state)):
            continue
        found = False
        for prefix in _prefixes(renamed, own):
            mine = {name: state[renamed[prefix + name]] for name in own if prefix + name in renamed}
            used = {prefix + name for name in mine}
            left = tuple(old for name, old in renamed.items() if name not in used and name.rpartition(".")[2] not in COUNTERS)
            others = not prefix or len(left) > 2 * len(mine) or any(name.startswith(prefix) for name in left)
            if (left and others) or _unlike(mine, own):
                continue
            found = True
            yield _Found(mine, keys, "".join(f"{word}." for word in words) + prefix, left)
        if found:
            return


def _prefixes(names: Mapping[str, str], own: State) -> list[str]:
    """What may stand before all names of the network, "" first. One name of a tensor that has several is enough."""
    aliases: dict[int, list[str]] = {}
    for name, value in own.items():
        if name.rpartition(".")[2] not in COUNTERS:
            aliases.setdefault(id(value), []).append(name)
    if not aliases:
        return []
    first = next(iter(aliases.values()))
    ends = {name.removesuffix(one) for one in first for name in names if name == one or name.endswith(f".{one}")}
    return sorted(end for end in ends if all(any(end + one in names for one in each) for each in aliases.values()))


def _unlike(state: State, own: State) -> list[str]:
    """What cannot be copied: tensors of another shape, or of numbers that mean nothing without a scale."""
    problems = [f"{k} is {tuple(v.shape)} instead of {tuple(own[k].shape)}" for k, v in state.items() if v.shape != own[k].shape]
    return problems + [
        f"{k} is {str(v.dtype).removeprefix('torch.')} instead of {str(own[k].dtype).removeprefix('torch.')}"
        for k, v in state.items()
        if own[k].is_floating_point() and (not v.is_floating_point() or v.itemsize < 2)
    ]


def _nearest(state: State, own: State) -> State:
    """The tensors without the words of wrappers and the prefix with which most names are the network's."""
    renamed = {".".join(part for part in name.split(".") if part not in WRAPPERS): value for name, value in state.items()}
    prefixes = Counter(name.removesuffix(k) for name in renamed for k in own if name == k or name.endswith(f".{k}"))
    if not prefixes or prefixes[""] == max(prefixes.values()):
        return renamed if prefixes else state
    prefix = max(prefixes, key=lambda each: prefixes[each])
    return {name.removeprefix(prefix): value for name, value in renamed.items()}


def _difference(state: State, own: State) -> str:
    """The first names that differ."""
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += _unlike({k: v for k, v in state.items() if k in own}, own)
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"{'; '.join(problems[:3])}{more}"


def _rank(keys: tuple[str, ...]) -> int:
    """Averaged weights come first, then those under the usual names, then the file itself, then others."""
    for key in keys:
        if key in AVERAGED:
            return AVERAGED.index(key)
    for key in keys:
        if key in USUAL:
            return 100 + USUAL.index(key)
    return 200 if not any(keys) else 300


def _holds(content: Any) -> str:
    if isinstance(content, Mapping):
        return f" (its keys: {_few(tuple(map(str, content)))})" if content else " (it is an empty dict)"
    return f" (it is a {type(content).__name__})"


def _at(keys: tuple[str, ...]) -> str:
    return f" at {'.'.join(keys)}" if keys else ""


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
