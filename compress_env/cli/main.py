"""The command line `compress-env`. Heavy modules are imported where they are used, so that `--help` answers at once."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from compress_env.bench.commands import bench
from compress_env.cli import options


@click.group(cls=options.Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="compress-env")
def main() -> None:
    """Compress a trained network: an agent searches for the student that keeps most of the accuracy within a budget.

    \b
    compress-env search --budget macs=0.5                       the shipped teacher on bundled digits, in a minute
    compress-env search --teacher resnet20-cifar10 --data imagefolder:cifar10 --budget macs=0.5 --out runs/a
    compress-env search --teacher net.py:make --weights net.pt --data imagefolder:photos --budget latency=2ms
    compress-env inspect --teacher resnet20-cifar10             what can be removed or shrunk, and what that saves
    compress-env list                                           what teachers, agents, rewards and so on there are
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that `module:factory` finds modules in the current folder


@main.command(short_help="Search for a student within a budget, distil it, save, export and report it.")
@options.with_options(options.NETWORK)
@click.option(
    "--agent",
    default="ddpg",
    show_default=True,
    help="A name of `compress-env list`, module:factory, or a class such as sb3_contrib:TQC.",
)
@options.AGENT_OPTION
@click.option("--evaluations", type=click.IntRange(1), default=150, show_default=True, help="Students to try.")
@click.option("--schedule", default="two-step", show_default=True, help="two-step, joint, removal or shrink.")
@click.option(
    "--reward", default="relative", show_default=True, help="relative, n2n, amc_error, amc_flops or module:function."
)
@click.option(
    "--limits", default="hard", show_default=True, help="hard: actions are clamped; soft: excess is punished."
)
@click.option(
    "--distill-steps",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Batches of distillation before a student is judged.",
)
@options.with_options(options.SCOPE)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Torch device of evaluations and fine-tuning; if given, of latency, too. auto: a GPU if there is one.",
)
@options.with_options(options.LATENCY)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--finetune-epochs",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="Full distillation of the best student; 0 leaves it for later.",
)
@click.option("--out", type=click.Path(), help="Run folder; runs/TEACHER-AGENT-SEED if absent.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
def search(teacher, weights, data, image_size, mean, std, budget, agent, agent_option, evaluations, schedule, reward, limits,
           distill_steps, device, runtime, latency_batch, latency_threads, seed, finetune_epochs, out, resume,
           **scope) -> None:  # fmt: skip
    """Search for the best student within the budget, distil it fully, and write plan, weights, exports and a report.

    \b
    compress-env search --budget macs=50% --agent ddpg --evaluations 60
    compress-env search --budget params=30K --budget memory=0.6 --agent random
    compress-env search --budget latency=50% --runtime onnxruntime --latency-threads 2
    compress-env search --teacher resnet20-cifar10 --data imagefolder:DIR --budget macs=0.5 --out runs/a --resume

    DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. The run folder then has run.json, trials.jsonl, result.json, plan.json,
    student.safetensors, student.onnx, student.pt2, report.html and, of an agent that learns, policy.onnx.
    Ctrl-C keeps everything; the same command with --resume goes on.
    """
    _run(
        out or f"runs/{Path(teacher.split(':')[0]).stem}-{agent.split(':')[-1]}-{seed}", finetune_epochs, teacher, data, budget, agent,
        evaluations, seed, resume=resume, agent_options=agent_option, weights=weights, image_size=image_size,
        normalization=options.normalization(mean, std), schedule=schedule, reward=reward, limits=limits,
        evaluator={"distill_steps": distill_steps}, device=device,
        latency=options.latency_setting(runtime, latency_batch, latency_threads), **options.patterns(scope),
    )  # fmt: skip


def _run(out: str, finetune_epochs: int, teacher, data, budget, agent, evaluations, seed, **settings) -> None:
    """Search, distil the best student fully unless that is for later, and say what came out."""
    from compress_env.api import finish, run_search

    command = "compress-env " + shlex.join(a for a in sys.argv[1:] if a != "--resume")
    folder, env = run_search(teacher, data, budget, agent, evaluations, seed, out, command=command, **settings)
    if finetune_epochs:
        _show(finish(folder, finetune_epochs, env=env))
    else:
        from compress_env.report.page import write_report

        best = max((t.reward for t in folder.trials()), default=float("nan"))
        click.echo(f"best reward {best:.4f} in {len(folder.trials())} evaluations; report: {write_report(folder.path)}")
        click.echo(f"next: compress-env finetune --out {shlex.quote(out)}")


@main.group(short_help="Use what an agent has learned.")
def policy() -> None:
    """Use what an agent has learned: searches with one that learns leave policy.onnx in their run folder, and `learn` makes one
    policy of the trials of several.

    \b
    compress-env policy learn runs/a runs/b --out policy.onnx
    compress-env policy apply policy.onnx --budget macs=0.35 --out runs/c
    """


@policy.command("learn", short_help="One policy from the trials of searches, for all budgets and teachers.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(), metavar="RUN...")
@click.option(
    "--budget", multiple=True, callback=options.limits, metavar="RESOURCE=LOW..HIGH", default=("macs=20%..80%",),
    show_default=True, help="What the policy learns to decide for.",
)  # fmt: skip
@click.option("--agent", default="ppo", show_default=True, help="One that learns; cheap episodes suit ppo best.")
@options.AGENT_OPTION
@click.option(
    "--episodes", type=click.IntRange(2), default=10_000, show_default=True, help="Played against the models."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False), required=True, metavar="FILE.onnx", help="The policy.")
def learn(runs, budget, agent, agent_option, episodes, seed, out) -> None:
    """Let an agent learn one policy from all that was recorded in the run folders RUN..., of one or several teachers, whatever agents
    and budgets they were searched with. Nothing is evaluated: for each teacher, a model of the reward is fitted to its trials.

    Searches over a range of budgets tell most. The more kinds of teachers, the better the policy is for one that it has never seen.

    \b
    compress-env search --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/a
    compress-env search --teacher vgg7-digits --budget macs=0.2..0.8 --evaluations 200 --finetune-epochs 0 --out runs/b
    compress-env policy learn runs/a runs/b --out policy.onnx
    compress-env bench policy policy.onnx --teacher mobilenetv2-digits --out runs/zero-shot
    """
    from compress_env.api import learn_policy

    gains = learn_policy(
        runs, out, budget=budget, agent=agent, agent_options=agent_option, episodes=episodes, seed=seed
    )
    for name, gain in gains:
        click.echo(f"{name}: {gain:.0%} of what the uniform students lack, by the model of its trials")
    click.echo(f"{out}; next: compress-env policy apply {shlex.quote(out)} --budget macs=0.35 --out runs/zero-shot")


@policy.command("apply", short_help="The student that a saved policy proposes, without a search.")
@click.argument("file", type=click.Path())
@options.with_options((*options.NETWORK, *options.SCOPE))
@click.option("--device", default="auto", show_default=True, help="Torch device of evaluation and fine-tuning.")
@options.with_options(options.LATENCY)
@click.option(
    "--finetune-epochs", type=click.IntRange(0), default=0, show_default=True, help="Full distillation of it."
)
@click.option("--out", type=click.Path(), required=True, help="Run folder to write.")
def apply(file, teacher, weights, data, image_size, mean, std, budget, device, runtime, latency_batch, latency_threads,
          finetune_epochs, out, **scope) -> None:  # fmt: skip
    """Let the policy in FILE decide about a teacher within a budget, once: neither has to be what it was learned with.

    Learned with a range of budgets (LOW..HIGH), a policy knows what to do at each. OUT is a run folder as of a search. To go on from
    a policy instead, search with --agent-option start=FILE.

    \b
    compress-env policy apply policy.onnx --budget macs=0.35 --finetune-epochs 10 --out runs/a
    compress-env search --budget macs=0.35 --agent-option start=policy.onnx --out runs/b
    """
    _run(
        out, finetune_epochs, teacher, data, budget, "policy", 1, 0, agent_options={"file": file}, weights=weights,
        image_size=image_size, normalization=options.normalization(mean, std), device=device,
        latency=options.latency_setting(runtime, latency_batch, latency_threads), **options.patterns(scope),
    )  # fmt: skip


@main.command(short_help="What can be removed from a teacher or shrunk, and what that saves.")
@options.TEACHER
@click.option(
    "--weights", type=click.Path(), help="Weights of a teacher given by factory; costs do not depend on them."
)
@click.option(
    "--input-shape", callback=options.shape, metavar="C,H,W", help="Of one input, for a teacher without --data."
)
@click.option("--data", help="As for search; only the shape of its inputs is used.")
@click.option("--image-size", type=click.IntRange(1), help="Pixels, for a folder of images of different sizes.")
@options.with_options(options.SCOPE)
@click.option("--latency", is_flag=True, help="Measure latency on this machine too, which takes longer.")
@options.with_options(options.LATENCY)
@click.option("--picture", type=click.Path(dir_okay=False), metavar="FILE.png", help="Draw it too: .png, .svg or .pdf.")
def inspect(teacher, weights, input_shape, data, image_size, latency, runtime, latency_batch, latency_threads, picture,
            **scope) -> None:  # fmt: skip
    """Show a teacher as a tree of blocks, which can be removed, and groups of channels, which can shrink: what each one saves,
    what is left alone and why, and the smallest usage of each resource that a budget can ask for.

    \b
    compress-env inspect --teacher resnet20-cifar10
    compress-env inspect --teacher net.py:make --input-shape 3,224,224 --keep 'stem.*' --picture net.png
    """
    import shutil

    from compress_env.report.inspect import inspect, text
    from compress_env.report.tree import check_place, save_picture

    if picture:
        check_place(picture)
    found = inspect(
        teacher, input_shape, data=data, weights=weights, image_size=image_size, progress=True,
        latency=options.latency_setting(runtime, latency_batch, latency_threads) if latency else False,
        **options.patterns(scope),
    )  # fmt: skip
    click.echo(text(found, min(120, shutil.get_terminal_size((100, 24)).columns)))
    if picture:
        click.echo(f"\npicture: {save_picture(found, picture)}")


@main.command(short_help="Distil the best student of a run folder fully.")
@click.option("--out", type=click.Path(), required=True, help="Run folder of a search.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
def finetune(out, epochs) -> None:
    """Distil the best student of a run fully; an interrupted fine-tuning goes on from its last epoch.

    \b
    compress-env finetune --out runs/a --epochs 40
    """
    from compress_env.api import finish
    from compress_env.search.store import RunFolder

    _show(finish(RunFolder(out), epochs))


@main.command(short_help="Write report.html of a run folder again.")
@click.option("--out", type=click.Path(), required=True, help="Run folder of a search.")
def report(out) -> None:
    """Write report.html from what is in a run folder, also of a search that is still running.

    \b
    compress-env report --out runs/a
    """
    from compress_env.report.page import write_report

    click.echo(write_report(Path(out)))


@main.command(short_help="Export the student of a run folder to ONNX and torch.export.")
@click.option("--out", type=click.Path(), required=True, help="Run folder with a fine-tuned student.")
@click.option("--onnx", type=click.Path(path_type=Path, dir_okay=False), help="Write ONNX to this file.")
@click.option(
    "--pt2", type=click.Path(path_type=Path, dir_okay=False), help="Write for torch.export.load to this file."
)
def export(out, onnx, pt2) -> None:
    """Rebuild the student from plan.json and student.safetensors, write files that need no code of ours, compare with PyTorch.

    Without --onnx and --pt2 both are written into the run folder, as student.onnx and student.pt2; the batch size is free.

    \b
    compress-env export --out runs/a
    compress-env export --out runs/a --onnx small.onnx --pt2 small.pt2
    """
    from compress_env.api import environment_of
    from compress_env.export import FORMATS, load_student
    from compress_env.progress import announced
    from compress_env.search.store import RunFolder

    folder = RunFolder(out)
    folder.read("plan.json")
    given = {"student.onnx": onnx, "student.pt2": pt2}
    paths = {n: p for n, p in given.items() if p} or {n: folder.path / n for n in FORMATS}
    env = environment_of(folder)
    student = load_student(env.teacher.module, env.graph, folder.path)
    for name, path in paths.items():
        with announced(f"writing and checking {path}"):
            difference = FORMATS[name](student, env.data.calibration(8), path)
        click.echo(f"{path}: outputs differ from PyTorch's by at most {difference:.1g} of the largest")


@main.command(short_help="Evaluate recorded trials again and compare.")
@click.option("--out", type=click.Path(), required=True, help="Run folder of a search.")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many trials, the best first.")
def validate(out, count) -> None:
    """Build and evaluate the best recorded plans again; exit code 1 if one does not reproduce.

    \b
    compress-env validate --out runs/a --count 20
    """
    from compress_env.api import environment_of
    from compress_env.search.store import RunFolder
    from compress_env.search.validate import differences

    folder = RunFolder(out)
    checked, wrong = differences(environment_of(folder), folder.trials(), count)
    for line in wrong:
        click.echo(line)
    click.echo(f"{checked - len(wrong)} of {checked} trials reproduce")
    if wrong:
        raise click.exceptions.Exit(1)


main.add_command(bench)


@main.command("list", short_help="What can be chosen by name.")
def list_() -> None:
    """Names of teachers, data sets, agents, rewards, losses and resources.

    \b
    compress-env list
    """
    from compress_env.data import DATASETS
    from compress_env.resources.base import RESOURCES
    from compress_env.rewards import REWARDS
    from compress_env.search.run import AGENTS
    from compress_env.tasks.classification.losses import LOSSES
    from compress_env.teachers import TEACHERS

    rows = {
        "teachers": TEACHERS.names(), "data sets": [*DATASETS.names(), "imagefolder:DIR"], "agents": sorted(AGENTS),
        "rewards": REWARDS.names(), "losses": LOSSES.names(), "resources": RESOURCES.names(),
    }  # fmt: skip
    for kind, names in rows.items():
        click.echo(f"{kind:10} {', '.join(names)}")


def _show(done) -> None:
    """The teacher beside the student, and where the report is."""
    from compress_env.resources.base import RESOURCES, amount

    result = done.result
    teacher, student = result["teacher"], result["student"]
    rows = [("", "teacher", "student", "")]
    for label, key, text in (
        ("test accuracy", "accuracy_test", "{:.2%}"), ("parameters", "params", "{:,.0f}"), ("MACs", "macs", "{:,.0f}"),
        ("latency", "latency_ms", "{:.2f} ms"), ("peak memory, bytes", "memory_bytes", "{:,.0f}"),
        ("file size, bytes", "file_bytes", "{:,.0f}"),
    ):  # fmt: skip
        change = student[key] / teacher[key]
        rows.append((label, text.format(teacher[key]), text.format(student[key]), f"{change:.1%}"))
    for name, limit in result["budget"].items():
        used = done.outcome.usage[name]
        met = "met" if used <= limit else "NOT MET"
        rows.append((f"budget {name}", f"{amount(limit)} {RESOURCES.get(name).unit}", amount(used), met))
    for a, b, c, d in rows:
        click.echo(f"{a:20} {b:>18} {c:>14} {d:>8}")
    final = result["final_policy"]
    click.echo(
        f"before fine-tuning, validation: best found {done.outcome.accuracy:.2%}"
        + (f", final policy {final['accuracy']:.2%}" if final else "")
        + f", teacher {done.outcome.teacher_accuracy:.2%}"
    )
    click.echo(f"latency: {result['latency']['label']}")
    click.echo(f"report: {done.report()}")


if __name__ == "__main__":
    main()
