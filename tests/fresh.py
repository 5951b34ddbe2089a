"""Runs a program as a new process of Python does, but for the seconds in which such a process imports libraries."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

LIBRARIES = [
    "torch", "torchvision", "torch_pruning", "gymnasium", "stable_baselines3", "sb3_contrib", "matplotlib.figure", "onnxruntime",
    "optuna", "pandas", "sklearn.ensemble", "torch.onnx", "torch.utils.tensorboard",
]  # fmt: skip
"""What the process that all programs come from has imported; nothing of this package."""
fork = get_context("forkserver")
fork.set_forkserver_preload(LIBRARIES)


def run(
    program: str | Path, cwd: Path, environment: Mapping[str, str] | None = None, strict: bool = False, timeout: float = 900
) -> CompletedProcess[str]:
    """What a program leaves: its exit code, and what it printed.

    Args:
        program: Code, as after `python -c`, or a file.
        cwd: Its working directory.
        environment: Variables that it has beside those of this process.
        strict: Whether a UserWarning is an error.
        timeout: Seconds after which it is killed.

    Raises:
        TimeoutExpired: If it takes longer.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = fork.Process(target=_program, args=(program, str(cwd), variables, strict, out, err))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutExpired(str(program), timeout)
        return CompletedProcess([str(program)], process.exitcode or 0, out.read_text(), err.read_text())


def _program(program: str | Path, cwd: str, variables: dict[str, str], strict: bool, out: Path, err: Path) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    loaded = [name for name in sys.modules if name.split(".")[0] == "compress_env"]
    assert not loaded, f"a new process has not imported {loaded[0]}"
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    if strict:
        warnings.simplefilter("error", UserWarning)
    sys.path[0] = str(program.parent) if isinstance(program, Path) else ""
    sys.argv = [str(program) if isinstance(program, Path) else "-c"]
    try:
        if isinstance(program, Path):
            runpy.run_path(str(program), run_name="__main__")
        else:
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
