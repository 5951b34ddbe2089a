"""`compress-env search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from compress_env.bisection import BUDGET
from compress_env.cli import options
from compress_env.cli.config import check_config, configured
from compress_env.cli.curve import curve, several
from compress_env.cli.guarantee import guarantee
from compress_env.cli.run import FINETUNE_EPOCHS, LOSS, run
from compress_env.spec import EnvironmentSpec, ProblemSpec, SearchSpec


@click.command(short_help="Search for a student within a budget, distil it, save, export and report it.")
@options.of(ProblemSpec, without=["input_shape"])
@options.of(EnvironmentSpec)
@options.of(SearchSpec)
@click.option(
    "--finetune-epochs", type=FINETUNE_EPOCHS, default=30, show_default=True,
    help="Full distillation of the best student; 0 leaves it for later.",
)  # fmt: skip
@click.option("--loss", help=LOSS)
@click.option(
    "--max-accuracy-drop", type=options.Finite(0, 100, max_open=True), metavar="POINTS",
    help="Find the smallest student that loses at most so many points (percent) of the task's metric on validation examples after "
    "distillation: a search over a range of budgets, macs=10%..100% if absent, then a bisection that distils about six students. Exit "
    "code 1 if no smaller student loses so little.",
)  # fmt: skip
@click.option("--out", type=options.Place(), help="Run folder; runs/TEACHER-AGENT-SEED if absent.")
@configured
@click.option("--dry-run", is_flag=True, help="Say how long it will take and what memory it needs, and stop.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@options.quiet
@options.as_json("The content of result.json")
def search(
    finetune_epochs: int, loss: str | None, max_accuracy_drop: float | None, out: str | None, dry_run: bool, resume: bool, quiet: bool,
    as_json: bool, trust: bool, **settings: Any,
) -> None:  # fmt: skip
    """Search for the best student within the budget, distil it fully, and write plan, weights, exports and a report.

    \b
    compress-env search --budget macs=50% --agent ddpg --evaluations 60
    compress-env search --budget macs=50% --agent stable_baselines3:SAC --agent-option learning_rate=0.003
    compress-env search --budget params=30K --budget memory=0.6 --agent random
    compress-env search --budget latency=50% --runtime onnxruntime --latency-threads 2
    compress-env search --budget energy.py:Energy=0.5 --evaluator distill_steps=10
    compress-env search --teacher resnet20-cifar10 --data imagefolder:DIR --budget macs=0.5 --out runs/a --resume
    compress-env search --max-accuracy-drop 0.5 --budget macs=10%..100%
    compress-env search --budget macs=25%,50%,75% --out runs/curve
    compress-env search --config runs/a/run.json --seed 1 --out runs/b

    DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. The run folder then has run.json, problem.json, sensitivities.json, trials.jsonl,
    result.json, plan.json, student.safetensors, student.onnx, student.pt2, report.html and, of an agent that learns, policy.onnx.
    Several limits with commas between them make a curve: a run folder for each budget in --out, and one table and picture of all.
    Rewards, resources, rankings, tasks and data sets of your own are given as module:attribute or file.py:attribute.
    Ctrl-C keeps everything; the same command with --resume goes on, also with more --evaluations.
    """
    check_config(trust)
    by_default = click.get_current_context().get_parameter_source("budget") is ParameterSource.DEFAULT
    if max_accuracy_drop is not None and by_default:
        settings["budget"] = BUDGET
    budgets = several(settings["budget"])
    if budgets:
        settings["budget"] = budgets[0]
    environment, found = options.specs(settings)
    name = f"{Path(environment.problem.teacher.split(':')[0]).stem}-{found.agent.split(':')[-1]}-{found.seed}"
    place = out or f"runs/{name}"
    how: dict[str, Any] = {"loss": loss, "resume": resume, "dry_run": dry_run, "quiet": quiet, "as_json": as_json}
    if budgets:
        curve(environment, budgets, found, place, finetune_epochs, max_accuracy_drop, **how)
    elif max_accuracy_drop is None:
        run(environment, found, place, finetune_epochs, **how)
    else:
        guarantee(environment, found, place, finetune_epochs, max_accuracy_drop, **how)
