"""`bench peers`: pruners of torch-pruning at the same MACs as our students, all of them fine-tuned alike."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from compress_env.bench.results import Results
from compress_env.bench.statistics import mean_interval, percent
from compress_env.bench.trained import built, recipe_of, train
from compress_env.contexts import one_thread
from compress_env.distill.train import Diverged, Recipe, accuracy, channels_last, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.errors import InfeasibleBudget, UserError
from compress_env.registry import unknown
from compress_env.resources.budget import parse_limit
from compress_env.resources.macs import Macs
from compress_env.resources.params import Params
from compress_env.search.store import RunFolder
from compress_env.search.trial import best_trial
from compress_env.surgery.layer_types import DENSE
from compress_env.surgery.plan import Plan
from compress_env.walk.walk import Walk


@dataclass(frozen=True)
class Pruner:
    """A way of torch-pruning to say how much a channel matters. everywhere: channels of all layers compete (global pruning), else
    each layer loses the same share. gradients: whether those of the loss are needed."""

    importance: Callable[[], tp.importance.Importance]
    everywhere: bool
    gradients: bool = False


PRUNERS = {
    "magnitude-uniform": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=False),
    "magnitude-global": Pruner(lambda: tp.importance.GroupMagnitudeImportance(p=2), everywhere=True),
    "taylor-uniform": Pruner(tp.importance.GroupTaylorImportance, everywhere=False, gradients=True),
    "taylor-global": Pruner(tp.importance.GroupTaylorImportance, everywhere=True, gradients=True),
    "bn-scale-uniform": Pruner(tp.importance.BNScaleImportance, everywhere=False),
    "bn-scale-global": Pruner(tp.importance.BNScaleImportance, everywhere=True),
}
STEPS = 10
"""Steps in which a pruner reaches its ratio, ranking what is left anew before each. In one step, global pruners leave a layer whole
that they would have to empty."""
HALVINGS = 20
IMAGES = 2048
"""Training images whose gradients the Taylor pruners see."""
PREFIX = "torch-pruning "


@dataclass(frozen=True)
class Row:
    """A student after fine-tuning with one seed, or why there is none. macs, params: shares of the teacher's. how: the pruning
    ratio or the plan. Accuracies are as in `Trained`."""

    student: str
    seed: int
    failed: str = ""
    how: str = ""
    macs: float = 0.0
    params: float = 0.0
    validation_start: float = 0.0
    test_start: float = 0.0
    validation: float = 0.0
    test: float = 0.0
    best_epoch: int = 0


@dataclass(frozen=True, eq=False)
class Contestant:
    """make: the student right after the surgery, and how it was made; it may raise for networks that torch-pruning cannot prune."""

    name: str
    make: Callable[[], tuple[nn.Module, str]]


def classifier(env: LayerRemovalEnv) -> list[str]:
    """Names of the layers that give the network's outputs, the first ones with weights on the way back from its end."""
    nodes = {node.name: node for node in env.graph.fx_graph.nodes}
    waiting, found, seen = [nodes[env.graph.output]], [], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and isinstance(env.teacher.module.get_submodule(node.target), DENSE):
            found.append(node.target)
        else:
            waiting += node.all_input_nodes
    return found


def gradients(env: LayerRemovalEnv) -> dict[str, torch.Tensor]:
    """Gradients of the teacher's cross-entropy on training images, as it is (normalisation by its own statistics)."""
    model = copy.deepcopy(env.teacher.module).requires_grad_(True)
    few = env.data.train.take(slice(IMAGES))
    for inputs, labels in zip(few.inputs.split(256), few.labels.split(256)):
        (cross_entropy(model(env.data.prepare(inputs)), labels, reduction="sum") / len(few)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def pruned(
    env: LayerRemovalEnv, pruner: Pruner, ratio: float, slopes: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """A copy of the teacher with `ratio` of its channels pruned, but not the outputs of its classifier. slopes: `gradients`."""
    model = copy.deepcopy(env.teacher.module).requires_grad_(True)
    for name, p in model.named_parameters():
        p.grad = slopes[name].clone() if slopes and name in slopes else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent = tp.pruner.BasePruner(
            model, env.data.calibration(2), pruner.importance(), global_pruning=pruner.everywhere, pruning_ratio=ratio,
            iterative_steps=STEPS, ignored_layers=[model.get_submodule(name) for name in classifier(env)],
            in_channel_groups={}, out_channel_groups={}, num_heads={},  # its defaults are shared and grow with each model
        )  # fmt: skip
        for _ in range(STEPS):
            agent.step()
    model.zero_grad(set_to_none=True)
    return model


def shrunk(env: LayerRemovalEnv, pruner: Pruner, limit: float) -> tuple[nn.Module, float]:
    """The largest student of a pruner within `limit` MACs that halving the interval of ratios finds, and its ratio.

    Raises InfeasibleBudget if there is none, and whatever torch-pruning raises.
    """
    slopes = gradients(env) if pruner.gradients else None
    example = env.data.calibration(2)
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        model = pruned(env, pruner, ratio, slopes)
        with torch.no_grad():
            shape = tuple(model(example).shape)
        if shape != (len(example), env.data.classes):
            raise RuntimeError(f"the pruned network answers with {shape[1:]} instead of {env.data.classes} classes")
        used = Macs().count(model, example[:1])
        if used > limit:
            low = ratio
        else:
            high = ratio
            if best is None or used > best[0]:
                best = (used, model, ratio)
    if best is None:
        raise InfeasibleBudget(f"even a ratio of {low:.4f} leaves {used:,.0f} MACs, more than {limit:,.0f}")
    return best[1], best[2]


def of_library(env: LayerRemovalEnv, name: str, limit: float) -> Contestant:
    def make():
        with one_thread():
            model, ratio = shrunk(env, PRUNERS[name], limit)
        return model, f"ratio {ratio:.4f}"

    return Contestant(PREFIX + name, make)


def of_plan(env: LayerRemovalEnv, name: str, plan: Plan) -> Contestant:
    return Contestant(name, lambda: (built(env, plan), plan.to_json()))


def uniform_plan(env: LayerRemovalEnv, limit: float) -> Plan:
    """The plan of action 0 at every step."""
    episode = Walk(env.problem, {"macs": limit}, hard=True)
    while not episode.done:
        episode.step(0.0, 0.0)
    return episode.finish()[0]


def of_run(env: LayerRemovalEnv, path: Path, limit: float, teacher: str, weights: str | None) -> Contestant:
    """The best student of a run folder. Raises UserError if it is none of this teacher's, or above the limit."""
    folder = RunFolder(path)
    settings, best = folder.settings(), best_trial(folder.trials())
    for name, mine in (("teacher", teacher), ("weights", weights)):
        if settings.get(name) != mine:
            raise UserError(f"{path} is a run with {name} {settings.get(name)!r}, not {mine!r}; give it the same one")
    if best is None:
        raise UserError(f"{path} has no student that meets its budget yet; search further with --resume")
    used = env.cost_model.predict("macs", env.graph.view(frozenset(best.plan.removed)), env.graph.widths(best.plan))
    if used > limit * (1 + 1e-9):
        raise UserError(
            f"the student of {path} has {used:,.0f} MACs, more than {limit:,.0f}; search with --budget macs={limit:.0f}"
        )
    return of_plan(env, f"{settings['agent']} {settings['seed']} ({best.plan.key[:6]})", best.plan)


def limit_of(budget: Mapping[str, object], teacher: float) -> float:
    """MACs from `{"macs": limit}`. Raises UserError for other resources."""
    if set(budget) != {"macs"}:
        raise UserError("students are compared at equal MACs; give one --budget macs=LIMIT, for example macs=0.5")
    return parse_limit(budget["macs"], Macs()).absolute(teacher)


def compare(
    env: LayerRemovalEnv, contestants: Sequence[Contestant], limit: float, epochs: int, seeds: int, out: Path,
    lr: float | None = None, progress: bool = True,
) -> tuple[dict, list[Row]]:  # fmt: skip
    """Fine-tune every contestant with every seed; rows are appended to `out/peers.jsonl`, those that are there are not made again.

    lr: the peak rate, if not that of full distillation. Returns settings and rows. Raises UserError if the file was made with other
    settings.
    """
    recipe = recipe_of(env, epochs, lr)
    settings = {
        "teacher": env.teacher.name, "data": env.data.name, "training_images": len(env.data.train), "limit": limit,
        "share": limit / env.cost_model.teacher["macs"], "epochs": epochs, "loss": "hinton", "steps": STEPS,
        "recipe": asdict(recipe), **_teacher(env),
    }  # fmt: skip
    results = Results(out / "peers.jsonl", Row, settings)
    done = {(r.student, r.seed) for r in results.rows}
    hopeless = {r.student for r in results.rows if r.failed}
    with tqdm(total=len(contestants) * seeds, desc="peers", unit="student", disable=not progress) as bar:
        for contestant in contestants:
            todo = [s for s in range(seeds) if (contestant.name, s) not in done and contestant.name not in hopeless]
            bar.set_postfix_str(contestant.name)
            bar.update(seeds - len(todo))
            for row in _rows(env, contestant, recipe, todo, out, progress):
                results.append(row)
                bar.update()
    return settings, results.rows


def _rows(env, contestant: Contestant, recipe: Recipe, seeds: Sequence[int], out: Path, progress: bool):
    if not seeds:
        return
    try:
        whole, how = contestant.make()
    except Exception as error:  # noqa: BLE001 - torch-pruning raises almost anything for networks it does not know
        if not contestant.name.startswith(PREFIX):
            raise
        yield Row(contestant.name, seeds[0], _reason(error))
        return
    example = env.data.calibration(1).to(next(whole.parameters()).device)
    shares = [resource.count(whole, example) / env.cost_model.teacher[name] for name, resource in
              (("macs", Macs()), ("params", Params()))]  # fmt: skip
    for seed in seeds:
        checkpoint = out / f"{contestant.name.replace(' ', '-')}-{seed}.checkpoint"
        try:
            result = train(env, copy.deepcopy(whole), recipe, seed, checkpoint, progress)
        except Diverged as error:
            checkpoint.unlink(missing_ok=True)
            yield Row(contestant.name, seed, _reason(error), how, *shares)
            return
        yield Row(contestant.name, seed, "", how, *shares, **asdict(result))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"


def _teacher(env: LayerRemovalEnv) -> dict[str, float]:
    """What the table says about the teacher."""
    with one_thread(), channels_last(env.whole):
        return {
            f"teacher_{name}": accuracy(predict(env.whole, env.data, split), split.labels)
            for name, split in (("validation", env.data.validation), ("test", env.data.test))
        }


def table(settings: Mapping, rows: Sequence[Row]) -> str:
    """Markdown: a line a student, the best on test images first, and the difference of our best one and the best peer."""
    by: dict[str, list[Row]] = {}
    for row in rows:
        by.setdefault(row.student, []).append(row)
    good = {name: own for name, own in by.items() if not any(r.failed for r in own)}
    lines = [
        f"{settings['teacher']} on {settings['data']}, at most {settings['share']:.1%} of the MACs; every student fine-tuned for "
        f"{settings['epochs']} epochs with the same recipe (peak rate {settings['recipe']['lr']:g}), loss and seeds. "
        "Mean ± 95 % interval over seeds (Student's t).",
        "",
        "| student | seeds | validation, cut | test, cut | validation, fine-tuned | test, fine-tuned | MACs | params |",
        "|---|---|---|---|---|---|---|---|",
        f"| teacher | | | | {settings['teacher_validation']:.2%} | {settings['teacher_test']:.2%} | 100% | 100% |",
    ]
    for name, own in sorted(good.items(), key=lambda item: -np.mean([r.test for r in item[1]])):
        first = own[0]
        cells = [name, str(len(own)), f"{first.validation_start:.2%}", f"{first.test_start:.2%}",
                 percent([r.validation for r in own]), percent([r.test for r in own]),
                 f"{first.macs:.1%}", f"{first.params:.1%}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for name, own in by.items():
        if name not in good:
            lines.append(f"| {name} | | failed: {_cell(next(r.failed for r in own if r.failed))} | | | | | |")
    lines += [
        "",
        "Cut: right after the surgery; ours are refitted then, without training, those of torch-pruning as it leaves them.",
    ]
    return "\n".join([*lines, *_lead(good)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _lead(good: Mapping[str, Sequence[Row]]) -> list[str]:
    """Our student that is best on validation images less the peer that is best on test images, a choice in the peer's favour:
    ties on few validation images would otherwise decide. On test images, seeds paired."""
    sides: dict[bool, dict[str, Sequence[Row]]] = {True: {}, False: {}}
    for name, own in good.items():
        sides[name.startswith(PREFIX)][name] = own
    if not all(sides.values()):
        return []
    ours = max(sides[False], key=lambda name: np.mean([r.validation for r in good[name]]))
    peer = max(sides[True], key=lambda name: np.mean([r.test for r in good[name]]))
    a, b = ({r.seed: r.test for r in good[name]} for name in (ours, peer))
    gaps = [100 * (a[s] - b[s]) for s in sorted(set(a) & set(b))]
    if not gaps:
        return []
    middle, half = mean_interval(gaps)
    spread = "" if np.isnan(half) else f" ± {half:.2f}"
    return [
        "",
        f"{ours} (our best on validation images) less {peer} (the best peer on test images): {middle:+.2f}{spread} points on test "
        "images.",
    ]


def contestants(
    env: LayerRemovalEnv, limit: float, methods: Sequence[str], runs: Sequence[Path], teacher: str, weights: str | None
) -> list[Contestant]:
    """Pruners by name, the uniform student, and the best students of run folders. Raises UserError for what cannot be compared."""
    for name in methods:
        if name not in PRUNERS:
            raise UserError(unknown("pruner", name, list(PRUNERS)))
    found = [of_run(env, path, limit, teacher, weights) for path in runs]
    ours = [of_plan(env, "uniform", uniform_plan(env, limit)), *{c.name: c for c in found}.values()]
    return [*ours, *(of_library(env, name, limit) for name in methods)]
