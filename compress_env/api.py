"""`compress`: a teacher, data and a budget go in, a distilled student within the budget comes out, with files and a report."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress_env import devices
from compress_env.contexts import one_thread
from compress_env.distill.finetune import Finetuned, finetune
from compress_env.distill.train import Recipe, accuracy, channels_last, predict
from compress_env.envs.layer_removal import LayerRemovalEnv, network_rows
from compress_env.errors import UserError
from compress_env.export import export_all, save_student
from compress_env.progress import announced
from compress_env.registry import unknown
from compress_env.resources.latency.runtimes import RuntimeConfig
from compress_env.rewards import Outcome
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial, best_trial, versions
from compress_env.surgery.plan import Plan

DEFAULTS: dict[str, Any] = {
    "teacher": "resnet8-digits", "weights": None, "data": None, "budget": {"macs": 0.5}, "schedule": "two-step",
    "reward": "relative", "limits": "hard", "evaluator": {}, "keep": [], "removable": ["*"], "shrinkable": ["*"],
    "channel_multiple": None, "min_width": 0.1, "image_size": None, "normalization": None, "device": "auto", "latency": None,
}  # fmt: skip
"""Arguments of the environment that a run records, so that it can be made again."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """What came out of a run. student: in evaluation mode, as good as its best epoch. result: what `result.json` holds."""

    student: nn.Module
    plan: Plan
    outcome: Outcome
    trials: list[Trial]
    finetuned: Finetuned
    result: dict[str, Any]
    folder: Path

    def report(self) -> Path:
        """The path of the HTML page."""
        return self.folder / "report.html"


def compress(
    teacher: Any = "resnet8-digits",
    data: Any = None,
    budget: Mapping[str, Any] | None = None,
    agent: str = "ddpg",
    evaluations: int = 150,
    seed: int = 0,
    out: str | Path | None = None,
    *,
    finetune_epochs: int = 30,
    **options: Any,
) -> Compressed:
    """Search for the best student of `teacher` within `budget`, distil it fully, save, export and report it.

    options: those of `run_search`. out: the run folder; a new one in the system's temporary folder if None. Raises UserError
    before any long work for what cannot be used. Ctrl-C during the search raises KeyboardInterrupt after everything found so far is
    in the folder; `resume=True` goes on from there.
    """
    if finetune_epochs < 1:
        raise UserError(f"finetune_epochs must be at least 1, got {finetune_epochs}")
    folder, env = run_search(teacher, data, budget, agent, evaluations, seed, out, **options)
    return finish(folder, finetune_epochs, env=env, progress=options.get("progress", True))


def run_search(
    teacher: Any,
    data: Any,
    budget: Mapping[str, Any] | None,
    agent: str,
    evaluations: int,
    seed: int,
    out: str | Path | None,
    *,
    resume: bool = False,
    command: str | None = None,
    progress: bool = True,
    agent_options: Mapping[str, Any] | None = None,
    **environment: Any,
) -> tuple[RunFolder, LayerRemovalEnv]:
    """The search alone: its run folder and environment, which `finish` takes.

    agent_options: settings of the agent's own. environment: arguments of `LayerRemoval-v0`.
    """
    find_agent(agent, agent_options)
    if evaluations < 1:
        raise UserError(f"evaluations must be at least 1, got {evaluations}")
    settings = DEFAULTS | environment
    if unexpected := sorted(set(environment) - set(DEFAULTS)):
        raise UserError(unknown("argument", unexpected[0], sorted(DEFAULTS)))
    if settings["weights"] is not None:
        settings["weights"] = str(settings["weights"])
    settings |= {"teacher": teacher, "data": data, "budget": {"macs": 0.5} if budget is None else dict(budget)}
    settings["latency"] = RuntimeConfig.of(settings["latency"], settings["device"]).as_dict()
    recorded = {k: v if _is_plain(v) else repr(v)[:80] for k, v in settings.items()}
    recorded |= {
        "agent": agent,
        "agent_options": dict(agent_options or {}),
        "evaluations": evaluations,
        "seed": seed,
        "versions": versions(),
        "command": command,
    }
    path = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-"))
    folder = RunFolder(path)
    folder.admit(recorded, resume)  # refuse before the teacher is loaded
    env = LayerRemovalEnv(**settings, progress=progress)  # gym.make would copy a teacher given as an object
    folder.begin(recorded)
    found = search(env, agent, evaluations, seed, folder, progress, agent_options)
    if found.interrupted:
        raise KeyboardInterrupt
    final = found.final_policy
    outcome = final and {
        "accuracy": final.outcome.accuracy,
        "reward": final.reward,
        "usage": dict(final.outcome.usage),
    }
    folder.write("search.json", {"seconds": round(found.seconds, 1), "final_policy": outcome})
    return folder, env


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (str, int, float, bool))


def finish(folder: RunFolder, epochs: int, *, env: LayerRemovalEnv | None = None, progress: bool = True) -> Compressed:
    """Distil the best student of a run folder fully, measure it beside its teacher, and write files and report.

    Without `env`, the environment is made again from the folder's settings.
    """
    settings = folder.settings()
    trials = folder.trials()
    best = best_trial(trials)
    if best is None:
        raise UserError(f"{folder.path} has no student that meets the budget yet; search further with --resume")
    if env is None:
        env = environment_of(folder, progress)
    plan, data, teacher = best.plan, env.data, env.whole
    student = env.student(plan)
    env.evaluator.prepare(student, plan)
    checkpoint = folder.path / f"finetune-{plan.key}-{epochs}.checkpoint"
    done = finetune(
        student, teacher, data, finetuning_recipe(len(data.train), epochs, env.device), seed=settings["seed"], checkpoint=checkpoint,
        progress=progress,
    )  # fmt: skip
    student = student.cpu()
    size = save_student(student, plan, folder.path).stat().st_size
    example = data.calibration(8)
    exports = export_all(student, example, folder.path, progress=progress)
    with one_thread(), channels_last(teacher):
        teacher_test = accuracy(predict(teacher, data, data.test), data.test.labels)
    teacher_usage, usage = env.cost_model.compare(student, plan)
    searched = folder.read("search.json") if (folder.path / "search.json").exists() else {}
    result = {
        "teacher": _column(teacher_test, teacher_usage, _file_bytes(teacher)),
        "student": _column(done.accuracy_test, usage, size),
        "latency": env.latency.as_dict() | {"label": env.latency.label},
        "budget": dict(best.outcome.budget),
        "feasible": all(usage[name] <= limit for name, limit in best.outcome.budget.items()),
        "evaluations": len(trials),
        "seconds": searched.get("seconds"),
        "agent": settings["agent"],
        "seed": settings["seed"],
        "versions": versions(),
        "command": settings["command"],
        "best_trial": best.index,
        "final_policy": searched.get("final_policy"),
        "finetune": {
            **{k: v for k, v in asdict(done).items() if k != "history"},
            "history": [{"epoch": i, "validation_accuracy": a} for i, a in enumerate(done.history)],
        },
        "exports": exports,
        "layers": network_rows(env, frozenset(plan.removed), env.graph.widths(plan)),
    }
    folder.write("result.json", result)
    from compress_env.report.page import write_report

    write_report(folder.path)
    return Compressed(student, plan, best.outcome, trials, done, result, folder.path)


def environment_of(
    folder: RunFolder, progress: bool = True, budget: Mapping[str, Any] | None = None
) -> LayerRemovalEnv:
    """The environment that a run folder was made with, or the same with another budget.

    Raises UserError if its teacher or data were Python objects.
    """
    settings = folder.settings()
    for name in ("teacher", "data"):
        if (
            isinstance(settings[name], str)
            and settings[name].startswith(("<", "("))
            or isinstance(settings[name], list)
        ):
            raise UserError(
                f"the {name} of {folder.path} was a Python object; go on from Python, with compress(..., resume=True)"
            )
    arguments = {k: settings.get(k, default) for k, default in DEFAULTS.items()}
    return LayerRemovalEnv(**arguments | ({"budget": budget} if budget else {}), progress=progress)


def learn_policy(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    budget: Mapping[str, Any] | None = None,
    agent: str = "ppo",
    agent_options: Mapping[str, Any] | None = None,
    episodes: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> list[tuple[str, float]]:
    """A policy from the trials of run folders, of one or several teachers, agents and budgets; nothing is evaluated.

    For each teacher, a model of the reward is fitted to all of its trials; `agent` plays `episodes` against the models (`SurrogateEnv`),
    and its policy is written to `out`. budget: what it learns for, `{"macs": ["20%", "80%"]}` if None. Returns for each teacher its
    name and how much of what the uniform students lack the policy is trusted to make good, 1 being all of it. Ctrl-C ends the
    learning, and what was learned so far is written. Raises UserError before any long work for what cannot be used.
    """
    from compress_env.agents import offline as rehearsal

    find_agent(agent, agent_options)
    kinds: dict[str, list[RunFolder]] = {}
    for folder in map(RunFolder, runs):
        settings = folder.settings()
        if settings["limits"] != "hard":
            raise UserError(
                f"{folder.path} has soft limits, whose rewards are only for its budget; search with hard ones"
            )
        if len(folder.trials()) < 2:
            raise UserError(f"{folder.path} has too few trials to learn from; search further with --resume")
        kinds.setdefault(repr([settings.get(k) for k in DEFAULTS if k != "budget"]), []).append(folder)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    teachers = []
    for folders in kinds.values():
        env = environment_of(folders[0], progress, budget or {"macs": ["20%", "80%"]})
        trials = [trial for folder in folders for trial in folder.trials()]
        with announced(f"fitting a model to {len(trials)} students of {env.teacher.name}", progress):
            teachers.append(rehearsal.SurrogateTeacher(env, trials, np.random.default_rng(seed)))
    gains = rehearsal.learn(teachers, agent, episodes, seed, Path(out), settings=agent_options, progress=progress)
    return [(teacher.env.teacher.name, gain) for teacher, gain in zip(teachers, gains)]


def finetuning_recipe(images: int, epochs: int, device: torch.device) -> Recipe:
    """How a student is distilled fully: batches of 128 (64 for small data sets), a short rise, then a cosine to 0.

    The peak rate grows with the root of the number of steps, from 0.02 for 350 to 0.1 at most. A refitted student starts close to its
    teacher: in one pass over CIFAR-10, a high rate loses what it has (a ResNet-20 student at a quarter of the MACs, two seeds: 54 and
    70 % at 0.05, 70 and 71 % at 0.04, 72 and 72 % at 0.015), while long trainings gain from one.
    """
    small = images < 10_000
    batch = 64 if small else 128
    steps = epochs * max(1, images // batch)
    return Recipe(
        epochs=epochs, batch_size=batch, lr=round(min(0.1, 0.02 * math.sqrt(steps / 350)), 3), weight_decay=2e-4,
        precision="float32" if small or not devices.has_bfloat16(device) else "bfloat16",
    )  # fmt: skip


def _column(test: float, usage: Mapping[str, float], file_bytes: int) -> dict[str, float]:
    return {
        "accuracy_test": test, "params": usage["params"], "macs": usage["macs"], "latency_ms": usage["latency"],
        "memory_bytes": usage["memory"], "file_bytes": file_bytes,
    }  # fmt: skip


def _file_bytes(module: nn.Module) -> int:
    from safetensors.torch import save

    return len(save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))


__all__ = ["Compressed", "compress", "environment_of", "finish", "run_search"]
