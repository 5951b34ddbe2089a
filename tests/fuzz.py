"""Command lines and files that nobody would write, drawn with a seed, for `test_fuzz.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from compress_env.cli.main import main

NUMBERS = (
    "0", "-1", "1", "2", "0.5", "1e999", "nan", "-inf", "99999999999999999999", "0x10", "1_0", "\u0663", "\u00bd", "1,2", "1e-320",
    "  3 ",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "none", "null", "true", "a:b", ":", "::", "math:sqrt", "nowhere.py:make", ".", "..", "-", "\u202e\x1b[31m",
    "a" * 5000, "{}", "[]", '{"a": 1}', "%s%n", "*", "resnet8-digits", "digits", "imagefolder:", "imagefolder:.", "~nobody/x",
    "compress_env:gym", "compress_env.errors:UserError", "json:dumps", "a\nb",
)  # fmt: skip
PLACES = (
    "", " ", "x", "x.onnx", "x.pt2", "x.png", "x.pdf", "no/x.png", "\u202e\x1b[31m", "a" * 5000, ".", "a\nb", "run.json", "x.jsonl",
)  # fmt: skip
"""Never outside the current folder, which is one for this alone: whatever a command does with them stays there."""
PAIRS = (
    "macs=0.5", "macs=", "=0.5", "macs", "macs=nan", "macs=inf", "macs=1e999", "macs=50%..20%", "macs=0.2..", "macs=0.9..1.1",
    "macs=-5%", "macs=[0.2,0.5]", "macs=[0.2]", "macs=null", "macs=true", "macs={}", "macs=2parsecs", "params=1e3K", "memory=1GiB",
    "x=1", "refit=no", "distill_steps=1", "distill_steps=-1", "lr=nan", "loss=math:sqrt", "temperature=0", "validation_images=0",
    "calibration_images=1", "batch_size=0", "validation_images=none", "tau=1", "mutations=-1", "mutations=[]", "seed=1", "a=b=c",
)  # fmt: skip
AGENTS = (
    "uniform", "random", "allocation", "model", "ddgp", "math:sqrt", "json:dumps", "builtins:dict", "stable_baselines3:DQN", "",
)  # fmt: skip
SLOW = ("--epochs", "--episodes", "--proposals", "--evaluations", "--seeds", "--jobs", "--finetune-epochs", "--count", "--timeout",
        "--runtime", "--latency-threads", "--latency-batch", "--sensitivities", "--device")  # fmt: skip
"""Options whose large values are honest wishes for more work than a test has time for."""
COMMANDS = (
    ("search",), ("inspect",), ("finetune",), ("distill",), ("report",), ("export",), ("validate",), ("policy", "learn"),
    ("policy", "apply"), ("bench", "run"), ("bench", "report"), ("bench", "policy"), ("list",),
)  # fmt: skip
BASE = {
    ("search",): ["--agent", "uniform", "--evaluations", "1", "--finetune-epochs", "0"],
    ("policy", "learn"): ["--episodes", "2"], ("policy", "apply"): ["--proposals", "1"], ("finetune",): ["--epochs", "1"],
    ("distill",): ["--epochs", "1", "--student", "vgg7-digits"],
    ("bench", "run"): ["--scenario", "nowhere", "--agent", "random"], ("validate",): ["--count", "1"],
    ("bench", "policy"): ["--evaluations", "0", "--budget", "0"],
}  # fmt: skip


def command_line(rng: np.random.Generator, run: Path, out: Path) -> list[str]:
    """A command with one to three options of values that are rarely right; `run` is the folder of a run, `out` a new place."""
    names = COMMANDS[rng.choice(len(COMMANDS), p=_WEIGHTS)]
    command: Any = main
    for name in names:
        command = command.commands[name]
    options = [p for p in command.params if isinstance(p, click.Option) and not set(p.opts) & {"--help", "--out", *SLOW}]
    line = [*names, *BASE.get(names, [])]
    if names == ("policy", "learn"):
        line.append(str(run))
    if names == ("policy", "apply"):
        line.append(str(rng.choice([run / "policy.onnx", run / "run.json", run, "gone.onnx", ""])))
    for option in rng.permutation(len(options))[: rng.integers(1, 4)]:
        line += _value(rng, options[option])
    place: dict[tuple[str, ...], Path | None] = {("inspect",): None, ("list",): None, ("search",): out, ("policy", "apply"): out}
    place["policy", "learn"] = out.with_suffix(".onnx")
    where = place.get(names, run)
    if where is not None:
        wrong = ["", str(run / "run.json" / "no"), str(run / "run.json"), "a" * 5000]
        line += ["--out", str(where) if rng.random() < 0.9 else str(rng.choice(wrong))]
    if rng.random() < 0.1:
        line.insert(int(rng.integers(1, len(line) + 1)), str(rng.choice(TEXTS)))
    return line


_WEIGHTS = np.array([5, 3, 2, 2, 1, 2, 2, 2, 2, 2, 1, 1, 0.5]) / 25.5


def _value(rng: np.random.Generator, option: click.Option) -> list[str]:
    flag = option.opts[0]
    if option.is_flag:
        return [flag]
    kind = type(option.type).__name__
    if kind == "NameValue" or option.metavar in ("RESOURCE=LIMIT", "NAME=VALUE"):
        return [flag, str(rng.choice(PAIRS if rng.random() < 0.8 else TEXTS))]
    if flag == "--agent":
        return [flag, str(rng.choice(AGENTS))]
    if kind == "Place" or option.metavar == "PATH":
        return [flag, str(rng.choice(PLACES))]
    numeric = kind in ("IntRange", "FloatRange", "IntParamType", "FloatParamType", "Numbers")
    return [flag, str(rng.choice(NUMBERS if numeric and rng.random() < 0.8 else TEXTS))]


# Files


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """A file's content after something went wrong with it."""
    kind = rng.integers(8)
    if kind == 0:
        return content[: rng.integers(len(content) + 1)]
    if kind == 1:
        return content + bytes(rng.integers(0, 256, 20, np.uint8)) + b"\n"
    if kind == 2:
        flipped = bytearray(content)
        for place in rng.integers(0, max(1, len(content)), 5):
            flipped[place % max(1, len(flipped))] ^= int(rng.integers(1, 256))
        return bytes(flipped)
    if kind == 3:
        return [b"", b"null\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b"1e999\n", b'"text"\n', b"\n\n"][rng.integers(8)]
    try:
        rows = [json.loads(line) for line in content.decode().splitlines()] if content.count(b"\n{") else [json.loads(content)]
    except ValueError:
        return content[::-1]
    row = rows[rng.integers(len(rows))]
    _change(rng, row)
    indent = None if len(rows) > 1 else 2
    return ("".join(json.dumps(r, indent=indent) + "\n" for r in rows)).encode()


WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 0.5, float("nan"), float("inf"), "", "x", "a:b", [], {}, [[]], {"x": 1}, "../../x", ["x"],
)  # fmt: skip


def _change(rng: np.random.Generator, value: Any) -> None:
    """Something, somewhere in nested values, has another type or value, or is gone."""
    while isinstance(value, (dict, list)) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        inner = value[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            if rng.random() < 0.3:
                del value[key]
            else:
                value[key] = WRONG[rng.integers(len(WRONG))]
            return
        value = inner
