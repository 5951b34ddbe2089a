"""FastNAS of NVIDIA's ModelOpt, brought to a number of MACs or to a measured time; its package is no dependency, see `INSTALL`."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.peers.limits import Bound
from benchmarks.peers.pruners import TooMuch, halved
from benchmarks.trained import metric
from compress_env.data.dataset import Split
from compress_env.errors import UserError
from compress_env.extras import installed

NAME = "fastnas"
INSTALL = "pip install nvidia-modelopt 'torchprofile<0.1'"
INPUTS, BATCHES = 128, 4
"""Training images at once, and how many times, from which it computes the statistics of normalisation of each candidate."""


def require() -> None:
    """Raises UserError if ModelOpt is not installed."""
    if not installed("modelopt", "torchprofile"):
        raise UserError(f"FastNAS needs NVIDIA's ModelOpt; install it with: {INSTALL}")


def shrunk(bound: Bound, validation: Split, folder: Path) -> nn.Module:
    """The largest student within a limit; FastNAS itself is asked for a share of the FLOPs, which is halved until the limit is met.

    Args:
        bound: The limit.
        validation: Images of its score, those of our searches.
        folder: Where it keeps what each width of each layer costs in score, which takes minutes to measure.

    Raises:
        InfeasibleBudget: If none is within the limit.
        UserError: If ModelOpt is not installed.
    """
    require()
    return halved(bound, _pruner(bound, validation, folder / f"{NAME}.pth"))[0]


def _pruner(bound: Bound, validation: Split, costs: Path) -> Callable[[float], tuple[nn.Module, tuple[()]]]:
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig

    problem = bound.problem
    few = problem.data.calibration(INPUTS * BATCHES)
    settings = {
        "data_loader": few.split(INPUTS), "collect_func": lambda inputs: inputs, "max_iter_data_loader": BATCHES,
        "score_func": lambda model: metric(problem, model.eval(), validation), "checkpoint": str(costs),
    }  # fmt: skip
    space = _with_divisor(FastNASConfig().model_dump(), bound.multiple)

    def pruned(ratio: float) -> tuple[nn.Module, tuple[()]]:
        model = copy.deepcopy(problem.teacher.module).requires_grad_(True)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            try:
                model, _ = mtp.prune(
                    model,
                    mode=[(NAME, space)],
                    constraints={"flops": f"{100 * (1 - ratio)}%"},
                    dummy_input=few[:1],
                    config=settings,
                )
            except ValueError as error:
                if "constraints can be satisfied" not in str(error):
                    raise
                raise TooMuch(f"FastNAS has no student with {1 - ratio:.1%} of the FLOPs") from error
        return model.eval(), ()

    return pruned


def _with_divisor(rules: Any, multiple: int) -> Any:
    """Rules of a search space, all of whose widths are multiples."""
    if not isinstance(rules, dict):
        return rules
    return {k: multiple if k.endswith("divisor") else _with_divisor(v, multiple) for k, v in rules.items()}
