"""`compress-env policy learn` and `compress-env policy apply`."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from compress_env.cli import options
from compress_env.cli.run import FINETUNE_EPOCHS, LOSS, run
from compress_env.cli.trust import trust_of, trusting
from compress_env.spec import EnvironmentSpec, ProblemSpec, SearchSpec


@click.group(short_help="Use what an agent has learned.")
def policy() -> None:
    """Use what an agent has learned: searches with one that learns leave policy.onnx in their run folder, and `learn` makes one
    policy of the trials of several.

    \b
    compress-env policy learn runs/a runs/b --out policy.onnx
    compress-env policy apply policy.onnx --budget macs=0.35 --out runs/c
    """


@policy.command("learn", short_help="One policy from the trials of searches, for all budgets and teachers.")
@trusting
@click.argument("runs", nargs=-1, required=True, type=options.Place(), metavar="RUN...")
@options.of(EnvironmentSpec, "budget", budget={"macs": "20%..80%"})
@options.of(SearchSpec, "agent", "agent_options", "seed", agent="ppo")
@click.option(
    "--episodes", type=click.IntRange(2), default=10_000, show_default=True, help="Played against the models."
)
@click.option("--out", type=options.Place(dir_okay=False), required=True, metavar="FILE.onnx", help="The policy.")
@options.quiet
@options.as_json("The gains, as shares, with teachers and runs,")
def learn(runs: tuple[str, ...], out: str, trust: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Let an agent learn one policy from all that was recorded in the run folders RUN..., of one or several teachers, whatever agents
    and budgets they were searched with. Nothing is evaluated: for each teacher, a model of the reward is fitted to its trials. Cheap
    episodes suit ppo best.

    Searches over a range of budgets tell most. The more kinds of teachers, the better the policy is for one that it has never seen.

    \b
    compress-env search --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/a
    compress-env search --teacher vgg7-digits --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/b
    compress-env policy learn runs/a runs/b --out policy.onnx
    compress-env bench policy policy.onnx --teacher mobilenetv2-digits --out runs/zero-shot
    """
    from compress_env.api import learn_policy
    from compress_env.search.store import RunFolder

    trusted = trust_of(map(RunFolder, runs), trust, also=settings["budget"])
    gains = learn_policy(runs, out, trust=trusted, progress=not quiet, **settings)
    if as_json:
        of = [{"teacher": name, "runs": own, "gain": gain} for name, gain, own in gains]
        click.echo(json.dumps({"policy": out, "gains": of}, indent=2))
        return
    for name, gain, own in gains:
        click.echo(f"{name} ({', '.join(own)}): {gain:.0%} of what the students of the action 0 lack, by the model of its trials")
    click.echo(f"{out}; next: compress-env policy apply {shlex.quote(out)} --budget macs=0.35 --out runs/zero-shot")


@policy.command("apply", short_help="The students that a saved policy proposes, without a search.")
@click.argument("file", type=options.Place())
@options.of(ProblemSpec, without=["input_shape", "changes", "max_growth"])
@options.of(EnvironmentSpec, "budget", "evaluator")
@click.option(
    "--finetune-epochs", type=FINETUNE_EPOCHS, default=0, show_default=True, help="Full distillation of it."
)
@click.option(
    "--proposals", type=click.IntRange(1), default=10, show_default=True, help="Plans to judge: its own, then others near it."
)
@click.option("--loss", help=LOSS)
@click.option("--out", type=options.Place(), required=True, help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@options.quiet
@options.as_json("The content of result.json, or the best trial,")
def apply(
    file: str, finetune_epochs: int, proposals: int, loss: str | None, out: str, resume: bool, quiet: bool, as_json: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Let the policy in FILE decide about a teacher within a budget: neither has to be what it was learned with. Its own plan, trial
    0, and others near it are judged, and the best is kept.

    Learned with a range of budgets (LOW..HIGH), a policy knows what to do at each. OUT is a run folder as of a search. To go on from
    a policy instead, search with --agent dyna-ddpg --agent-option start=FILE. Ctrl-C keeps everything; the same command with --resume
    goes on.

    \b
    compress-env policy apply policy.onnx --budget macs=0.35 --finetune-epochs 10 --out runs/a
    compress-env search --budget macs=0.35 --agent dyna-ddpg --agent-option start=policy.onnx --out runs/b
    """
    environment, _ = options.specs(settings)
    search = SearchSpec("policy", {"file": file}, evaluations=proposals)
    run(environment, search, out, finetune_epochs, loss=loss, resume=resume, quiet=quiet, as_json=as_json)
