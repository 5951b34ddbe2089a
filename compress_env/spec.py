"""Every setting, once: frozen dataclasses from which the environment's keywords, the command line's options and `run.json` are made.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from os import PathLike
from typing import Any

from compress_env.errors import UserError
from compress_env.records import value_of
from compress_env.registry import unknown
from compress_env.settings import Settings, setting

COUNTED = ("params", "macs", "memory")
"""Resources that are counted for every problem."""
SCHEDULES = ("two-step", "joint", "removal", "shrink")
CHANGES = ("compress", "grow", "transform")
ACTIONS = ("relative", "absolute", "share")
OBSERVATIONS = ("embedding", "amc", "n2n")
LARGEST_GROWTH = 64.0
TRAINED: Mapping[str, Any] = {"distill_steps": 100, "loss": "labels", "lr": 0.002, "refit": False}
"""How students are judged by default where a network may grow: all of them compute what it does, until they are trained."""
BUDGETS: Mapping[str, Mapping[str, Any]] = {"compress": {"macs": 0.5}, "grow": {"macs": "200%"}, "transform": {"macs": "100%"}}
"""The default budget, by what a plan may do."""
RUNTIMES = {"eager": "PyTorch eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime"}
"""Where latency can be measured: names, and what tables call them."""
LARGEST_INPUT = 2**27
"""Numbers in one input; more than any image has, and what a laptop can hold."""
SEEDS = 2**32
"""Seeds are below; NumPy takes no larger ones."""

@dataclass(frozen=True)
class ProblemSpec(Settings):
    """A compression problem: the teacher, its data, what of it may change, and how channels are ranked.

    Everything is JSON but a teacher given as a module and data given as datasets, which are allowed; a run made with them can only be
    gone on with from Python.
    """

    teacher: Any = setting("resnet8-digits", "Name, module:factory or file.py:factory; from Python a module, too.")
    weights: str | None = setting(None, "Weights of a teacher given by factory: safetensors, a state dict or a checkpoint.", path=True)
    data: Any = setting(
        None,
        "digits, cifar10, fashion-mnist, imagefolder:DIR, images:DIR (without labels), hf:NAME_OR_PATH (of the package datasets) or "
        "module:factory; the shipped teacher's own if absent. From Python (train, test), too.",
        text=True,
    )
    validation: Any = setting(
        None, "Folder of images that the teacher was not trained on, to judge students on, as DIR/CLASS/*.jpg; a part of the training "
        "data if absent. From Python a dataset, too.", text=True,
    )  # fmt: skip
    classes: int | None = setting(None, "Outputs of the teacher, if no label is of some of its classes.", low=2)
    image_size: int | None = setting(None, "Pixels, for a folder of images of different sizes.", low=1)
    augmentation: Any = setting(
        None,
        "How training images are changed at random: none, resized-crop, trivial, module:function or file.py:function; by default what "
        "the data set has. From Python a callable, too.",
        text=True,
    )
    mean: tuple[float, ...] | None = setting(None, "Means a channel that the teacher was trained with, e.g. 0.485,0.456,0.406.")
    std: tuple[float, ...] | None = setting(None, "Standard deviations a channel, likewise.")
    input_shape: tuple[int, ...] | None = setting(None, "Of one input, for a teacher without data.", metavar="C,H,W")
    task: str = setting("classification", "How outputs are compared and measured.")
    schedule: str = setting(
        "two-step", "Decisions and their order: two-step (all removals, then all widths), joint (layer by layer), or one kind alone.",
        choices=SCHEDULES,
    )  # fmt: skip
    protect: tuple[str, ...] = setting((), "Layers that stay as they are, e.g. 'stages.0.*'. May be repeated.", metavar="PATTERN")
    removable: tuple[str, ...] = setting(("*",), "Only these layers may be removed. May be repeated.", metavar="PATTERN")
    shrinkable: tuple[str, ...] = setting(("*",), "Only these layers may be shrunk. May be repeated.", metavar="PATTERN")
    channel_multiple: int | None = setting(
        None,
        "Widths are multiples of it, for hardware that computes 8, 16 or 32 channels at a time; 8 with a measured budget, else 1.",
        low=1,
    )
    changes: str = setting(
        "compress", "What a plan may do: compress (remove and shrink), grow (insert and widen, its outputs preserved) "
        "or transform (all of it).", choices=CHANGES,
    )  # fmt: skip
    max_growth: float | None = setting(
        None, "How many times its channels a layer may have, where the network may grow; 2 if absent.", low=1.0
    )
    min_width: float = setting(0.1, "Smallest share of a layer's channels.", low=0.0, high=1.0)
    ranking: Any = setting(
        "reconstruction", "Which channels of a group stay: reconstruction, magnitude, or module:attribute of one's own.", text=True
    )
    resources: tuple[str, ...] = setting(
        (), "A resource to count beside params, macs and memory: latency, which is measured, or energy.py:Energy. May be repeated.",
        hidden=True, option="--resource", metavar="NAME",
    )  # fmt: skip
    device: str = setting(
        "auto", "Torch device of evaluations and fine-tuning; if given, of latency, too. auto: a GPU if there is one."
    )
    runtime: str = setting("eager", "Where the student will run: latency is measured there.", choices=tuple(RUNTIMES))
    latency_batch: int = setting(1, "Inputs at once, where latency is measured.", low=1)
    latency_threads: int = setting(1, "CPU threads of a pass, where latency is measured.", low=1)

    def __post_init__(self) -> None:
        self.check_numbers()
        for name in ("mean", "std", "input_shape", "protect", "removable", "shrinkable", "resources"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise UserError(f"{name} has to be a sequence, got the text {value!r}; give [{value!r}]")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if self.weights is not None:
            if not isinstance(self.weights, (str, PathLike)):
                raise UserError(f"weights have to be a file's path, got {type(self.weights).__name__}; load them into the teacher")
            object.__setattr__(self, "weights", str(self.weights))
        if self.changes not in CHANGES:
            raise UserError(unknown("changes", self.changes, list(CHANGES)))
        if self.max_growth is not None and (self.changes == "compress" or not 1 <= self.max_growth <= LARGEST_GROWTH):
            raise UserError(
                f"max_growth is for changes='grow' or 'transform', and lies between 1 and {LARGEST_GROWTH:.0f}; got "
                f"{self.max_growth!r} with changes={self.changes!r}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(unknown("schedule", self.schedule, list(SCHEDULES)))
        if self.runtime not in RUNTIMES:
            raise UserError(unknown("runtime", self.runtime, list(RUNTIMES)))
        if self.input_shape is not None and not all(isinstance(n, int) and n > 0 for n in self.input_shape or (0,)):
            raise UserError(
                f"input_shape {self.input_shape} is not a shape of one input without the batch, for example 3,224,224"
            )
        if self.input_shape is not None and math.prod(self.input_shape) > LARGEST_INPUT:
            raise UserError(
                f"input_shape {self.input_shape} is one input of {4 * math.prod(self.input_shape) / 2**30:,.0f} GiB; give one of at "
                f"most {LARGEST_INPUT:,} numbers, for example 3,224,224"
            )
        if (self.mean is None) != (self.std is None):
            raise UserError("mean and std have to be given together, as numbers")
        if self.mean is not None and self.std is not None and (len(self.mean) != len(self.std) or min(self.std) <= 0):
            raise UserError("mean and std need one number a channel each, deviations above 0")

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Means and deviations, or None for the data's own."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    @property
    def growth(self) -> float:
        """How many times its channels a layer may have."""
        return 1.0 if self.changes == "compress" else self.max_growth or 2.0

    @property
    def scope(self) -> dict[str, Any]:
        """What `trace` takes, but for a channel multiple that depends on the resources."""
        return {n: getattr(self, n) for n in ("protect", "removable", "shrinkable", "min_width")}


@dataclass(frozen=True)
class EvaluatorSettings(Settings):
    """How a student is judged."""

    calibration_images: int = setting(256, "Training images for the refit and for normalisation statistics.", low=1)
    refit: bool = setting(True, "Least squares after the surgery.")
    inherit: bool = setting(
        True, "Whether students have the teacher's weights, or new ones, always the same; those need distill_steps, and no refit."
    )  # fmt: skip
    distill_steps: int = setting(
        0, "Batches of augmented training images that the student is distilled on after that, the same for every student.", low=0
    )
    batch_size: int = setting(64, "Images a batch of them.", low=1)
    lr: float = setting(0.001, "Adam's rate in them.")
    loss: str | None = setting(None, "Their loss; the task's own choice if absent.")
    temperature: float = setting(4.0, "Their temperature.")
    validation_images: int | None = setting(
        1750, "Images that the student is judged on, at most half of the validation split, which is what None takes; the ten best are "
        "judged on all of it.", low=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.check_numbers("evaluator: ")
        for name in ("lr", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"evaluator: {name} must be positive, got {getattr(self, name)}")
        if not self.inherit and (self.refit or not self.distill_steps):
            raise UserError("evaluator: students with new weights have to be trained; give distill_steps=100 and refit=false, too")


@dataclass(frozen=True)
class EnvironmentSpec(Settings):
    """A problem with a budget, a reward, and a way to judge students."""

    problem: ProblemSpec = setting(None, "The problem.", factory=ProblemSpec, hidden=True)
    budget: Mapping[str, Any] = setting(
        None,
        "params, macs, memory, latency or a resource of your own; a share of the teacher (0.5, 50%) or absolute (300K, 20M, 2ms, "
        "1MiB). LOW..HIGH draws a limit for each student; a search makes a curve of several, as in 25%,50%. May be repeated.",
        factory=lambda: {"macs": 0.5},
        metavar="RESOURCE=LIMIT",
    )
    constraint: str = setting(
        "hard", "hard: actions are clamped, so that every student meets the budget; soft: the reward punishes the excess.",
        choices=("hard", "soft"),
    )  # fmt: skip
    actions: str | None = setting(
        None, "relative: an action says how much more than the allocation its block or group is to be kept or shrunk; absolute: keep "
        "or remove, and a share of channels, with that of the uniform student in the middle; share: likewise, from all channels to "
        "min_width of them. If absent relative, but absolute with soft limits, and where the network may grow.",
        choices=ACTIONS,
    )  # fmt: skip
    observation: str = setting(
        "embedding", "What an agent sees at each step: the layer embedding, or the state of amc or n2n, which needs no sensitivities.",
        choices=OBSERVATIONS,
    )  # fmt: skip
    shaping: bool = setting(
        True, "A reward at each step, by what the decisions so far are predicted to lead to; those of an episode add up to the same.",
        hidden=True,
    )  # fmt: skip
    reward: Any = setting(
        None, "relative, metric, eas, n2n, amc_error, amc_flops or module:function. If absent relative, but metric where the "
        "network may grow.", text=True,
    )  # fmt: skip
    timeout: float | None = setting(
        None, "Seconds that an evaluation may take; a student that takes longer has failed. If absent, thirty times the first one's, "
        "at least 60; 0 for no limit.", low=0.0, high=1e8,
    )  # fmt: skip
    evaluator: EvaluatorSettings = setting(
        None, "How a student is judged, e.g. distill_steps=10. May be repeated.", factory=EvaluatorSettings, metavar="NAME=VALUE"
    )

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.constraint not in ("hard", "soft"):
            raise UserError(unknown("constraint", self.constraint, ["hard", "soft"]))
        if not isinstance(self.budget, Mapping):
            raise UserError(f'a budget is a mapping such as {{"macs": 0.5}}, got {self.budget!r}')
        object.__setattr__(self, "budget", dict(self.budget))
        grows = self.problem.changes != "compress"
        actions = self.actions or ("relative" if self.constraint == "hard" and not grows else "absolute")
        object.__setattr__(self, "actions", actions)
        if actions == "relative" and grows:
            raise UserError("relative actions are about what is taken away, and this network may grow; give actions='absolute'")
        if self.reward is None:
            object.__setattr__(self, "reward", "metric" if grows else "relative")
        if actions not in ACTIONS:
            raise UserError(unknown("actions", actions, list(ACTIONS)))
        if self.observation not in OBSERVATIONS:
            raise UserError(unknown("observation", self.observation, list(OBSERVATIONS)))
        if actions == "relative" and self.constraint == "soft":
            raise UserError("relative actions keep every limit, and the limits are soft; give actions='absolute', or hard limits")
        if isinstance(self.evaluator, Mapping):
            try:
                given = {**(TRAINED if grows else {}), **self.evaluator}
                object.__setattr__(self, "evaluator", EvaluatorSettings.of(**given))
            except UserError as error:
                raise UserError(f"evaluator: {error}" if not str(error).startswith("evaluator") else str(error)) from None
        elif not isinstance(self.evaluator, EvaluatorSettings):
            raise UserError(f'evaluator has to be a mapping such as {{"distill_steps": 10}}, got {self.evaluator!r}')
        elif grows and self.evaluator == EvaluatorSettings():
            object.__setattr__(self, "evaluator", EvaluatorSettings.of(**TRAINED))
        further = tuple(sorted({*self.problem.resources, *self.budget} - {*COUNTED}))
        object.__setattr__(self, "problem", replace(self.problem, resources=further))

    @classmethod
    def of_keywords(cls, **given: Any) -> EnvironmentSpec:
        """Made of flat keywords, those of `ProblemSpec` among them. Raises UserError for one that is not known."""
        known = keywords()
        for name in given:
            if name not in known:
                raise UserError(unknown("argument", name, list(known)))
        if given.get("budget") is None and given.get("changes") in BUDGETS:
            given["budget"] = BUDGETS[given["changes"]]
        own = {n: v for n, v in given.items() if n in {f.name for f in fields(cls)} and (v is not None or n == "reward")}
        problem = ProblemSpec(**{n: v for n, v in given.items() if n not in {f.name for f in fields(cls)}})
        return cls(problem, **own)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnvironmentSpec:
        """The settings of `to_json`. Raises UserError if one of them was an object."""
        problem = value_of(Mapping[str, Any], data.get("problem"), "problem")
        return super().from_json({**data, "problem": ProblemSpec.from_json(problem)})


@dataclass(frozen=True)
class SearchSpec(Settings):
    """A search: an agent and how long it looks."""

    agent: str = setting(
        "model", "A name of `compress-env list`, module:factory, or a class such as sb3_contrib:TQC."
    )
    agent_options: Mapping[str, Any] = setting(
        None, "A setting of the agent's own, e.g. learning_rate=0.001. May be repeated.", factory=dict,
        option="--agent-option", metavar="NAME=VALUE",
    )  # fmt: skip
    evaluations: int = setting(150, "Students to try.", low=1)
    seed: int = setting(0, "Of everything random.", low=0, high=SEEDS - 1)
    workers: int = setting(1, "Students to judge at once, each in a process of its own.", low=1)
    cluster: str | None = setting(None, "A Ray cluster for the workers: auto, or its address.", metavar="ADDRESS")
    callbacks: tuple[Any, ...] = setting(
        (), "module:factory or file.py:factory of a callback, which is told of each trial. May be repeated.", option="--callback",
        metavar="PLACE",
    )  # fmt: skip
    tensorboard: bool = setting(
        False, "Write scalars of the trials, and the agent's own, to the folder tensorboard in --out (tensorboard --logdir)."
    )

    def __post_init__(self) -> None:
        self.check_numbers()
        object.__setattr__(self, "agent_options", dict(self.agent_options or {}))
        if isinstance(self.callbacks, str) or not isinstance(self.callbacks, Sequence):
            raise UserError(f"callbacks have to be a list, got {self.callbacks!r}; give [{self.callbacks!r}]")
        object.__setattr__(self, "callbacks", tuple(self.callbacks))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; callbacks that are objects are left out, since no result depends on them."""
        return super().to_json() | {"callbacks": [each for each in self.callbacks if isinstance(each, str)]}


@dataclass(frozen=True)
class FinetuneSpec(Settings):
    """The full distillation of a student. What is None is chosen by the size of the data (`distill.recipes.finetuning_recipe`)."""

    epochs: int = setting(30, "Passes over the training data.", low=1)
    lr: float | None = setting(None, "Peak of the learning rate; by the number of steps if absent.", low=0.0)
    batch_size: int | None = setting(None, "Images a batch; 128 if absent, 64 for small data.", low=1)
    accumulate: int = setting(1, "Parts of a batch that are computed one after the other, for want of memory.", low=1)
    cycles: int = setting(1, "Times that the student shrinks towards its plan, and is distilled for a share of the epochs.", low=1)
    examples: int | None = setting(None, "Training images that are learned from, again and again; all if absent.", low=1)
    loss: Any = setting(None, "Of the task's losses, or module:function; the task's own choice if absent.", text=True)
    temperature: float | None = setting(None, "Of the loss, if it has one; 4 if absent.", low=0.0)
    label_weight: float | None = setting(
        None, "Weight of the cross-entropy with the labels in the loss, if it has one; the loss's own if absent.", low=0.0, high=1.0
    )

    def __post_init__(self) -> None:
        self.check_numbers("fine-tuning: ")
        if self.epochs < self.cycles:
            raise UserError(f"fine-tuning: {self.cycles} cycles need an epoch each, and there are {self.epochs}; give more epochs")
        for name in ("lr", "temperature"):
            if getattr(self, name) == 0:
                raise UserError(f"fine-tuning: {name} has to be a positive number, got 0")


def keywords() -> dict[str, Any]:
    """Defaults of the environment's keywords, by name."""
    found = {}
    for f in (*fields(ProblemSpec), *fields(EnvironmentSpec)):
        if f.name not in ("problem", "resources"):
            found[f.name] = f.default_factory() if f.default_factory is not MISSING else f.default
    return found


__all__ = ["EnvironmentSpec", "EvaluatorSettings", "FinetuneSpec", "ProblemSpec", "SearchSpec"]
