"""`distil`: any student learns from any teacher, without a search; its files and numbers are those of the end of a run."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress_env import devices
from compress_env.cache import fingerprint
from compress_env.contexts import one_thread, seeded
from compress_env.data import Split
from compress_env.distill.finetune import Finetuned, finetune, loss_function, loss_name, loss_settings
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import Diverged, predict
from compress_env.distilled import DistillationResult, NetworkNumbers
from compress_env.errors import DoubtfulTeacher, UserError
from compress_env.export import export_all, save_weights, state_bytes
from compress_env.failures import reason_of
from compress_env.files import difference, make_folder, read_json, remove, write_json
from compress_env.own_code import Trust
from compress_env.records import Damaged, record
from compress_env.registry import unknown
from compress_env.resources.macs import Macs
from compress_env.running import EXAMPLES, answers, data_of, takes_bfloat16
from compress_env.search.metadata import by_class, described
from compress_env.search.store import alone_in
from compress_env.search.trial import versions
from compress_env.spec import FinetuneSpec, ProblemSpec, SearchSpec
from compress_env.students import SETTINGS, load_student
from compress_env.surgery.layout import PLAIN, channels_last, needs_plain
from compress_env.tasks import Task, agreement, load_task
from compress_env.tasks.doubts import CHECK, doubts, trained_on
from compress_env.teachers import TEACHERS, Teacher, load_teacher, load_weights

PROBLEM = ("teacher", "weights", "data", "validation", "classes", "image_size", "augmentation", "mean", "std", "task", "device")
"""The settings of a problem that matter where nothing is searched for."""
OWN = ("lr", "batch_size", "accumulate", "temperature", "label_weight")
RESULT, CHECKPOINT = "result.json", "distillation.checkpoint"
NOTES = ("versions", "command")
"""Parts of the settings that do not change what comes of them."""


@dataclass(frozen=True, eq=False)
class Distilled:
    """The outcome of a distillation.

    Attributes:
        student: In evaluation mode on the CPU, as good as its best epoch.
        finetuned: How it went.
        result: The content of `result.json`.
        folder: Where the files are.
    """

    student: nn.Module
    finetuned: Finetuned
    result: DistillationResult
    folder: Path


def distil(
    teacher: Any,
    student: Any,
    data: Any = None,
    *,
    student_weights: str | Path | None = None,
    loss: Any = None,
    epochs: int = 30,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    trust: Trust = False,
    command: str | None = None,
    **further: Any,
) -> Distilled:
    """Train a student of any design to answer as its teacher does, measure both, and save and export it.

    Neither module is changed if one is given; `.student` is a copy that was trained. Every epoch is recorded, so that the same call
    goes on after an interruption, and one that is finished only reads its outcome.

    Args:
        teacher: A module, a name, `module:factory` or `file.py:factory`.
        student: The same (a factory makes random weights, a name has the shipped ones), or a run folder, whose student it is then.
        data: As for `compress`; a shipped teacher's own if None. Labels are not needed: those that the teacher's outputs stand for
            take their place, and the metric is how often both agree.
        student_weights: A file of weights to begin with, for a student that is given by name or place.
        loss: Of the task's losses, `module:function`, or a function; the task's own choice if None.
        epochs: Passes over the training data.
        seed: Of a student's random weights, and of the order of the examples and their augmentation.
        out: The folder for the files; a new one in the system's temporary folder if None.
        progress: Whether to show on standard error how far it is.
        trust: Whether to run code that a student's run folder names: True, or the places of what may be run.
        command: The command line that asked for it, for the record.
        further: `lr`, `batch_size`, `accumulate`, `temperature` and `label_weight` (`compress_env.spec.FinetuneSpec`), and of the
            problem `weights`, `validation`, `classes`, `image_size`, `augmentation`, `mean`, `std`, `task` and `device`
            (`compress_env.spec.ProblemSpec`).

    Raises:
        UserError: Before any long work, for anything that cannot be used, or if `out` holds something else; and if the training
            diverges.
        KeyboardInterrupt: On Ctrl-C, after whole epochs were recorded.
    """
    for name in further:
        if name not in (*OWN, *PROBLEM):
            raise UserError(unknown("argument", name, [*OWN, *PROBLEM]))
    spec = FinetuneSpec.of(epochs=epochs, loss=loss, **{n: v for n, v in further.items() if n in OWN})
    problem = ProblemSpec(teacher=teacher, data=data, **{n: v for n, v in further.items() if n not in OWN})
    SearchSpec(seed=seed)
    task = load_task(problem.task)
    loss_function(task, spec.loss, spec.temperature, spec.label_weight)
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="compress_env-"))
    if (folder / "run.json").exists():
        raise UserError(f"{folder} is the folder of a search, whose student would be overwritten; choose another --out")
    master = load_teacher(problem.teacher, problem.weights, progress)
    pupil = _student(student, student_weights, seed, progress, trust)
    settings = {
        **{name: value for name, value in problem.to_json().items() if name in PROBLEM}, **_described(spec),
        "loss": loss_name(task, spec.loss), "student": pupil.name, "student_weights": student_weights and str(student_weights),
        "seed": seed, "teacher_id": fingerprint(master.module), "student_id": fingerprint(pupil.module),
        "versions": versions(), "command": command,
    }  # fmt: skip
    _admit(folder, settings)
    if found := _finished(folder, pupil.module):
        return found
    training = _Training(problem, spec, master, pupil, task, progress)
    make_folder(folder)
    with alone_in(folder):
        write_json(folder / SETTINGS, settings)
        found = training(folder, seed, settings["loss"])
        remove(folder / CHECKPOINT)
    return found


def _described(spec: FinetuneSpec) -> dict[str, Any]:
    """The settings; `accumulate` is left out where it is 1, as in folders from before it."""
    return {name: value for name, value in spec.to_json().items() if (name, value) != ("accumulate", 1)}


def _student(spec: Any, weights: str | Path | None, seed: int, progress: bool, trust: Trust) -> Teacher:
    """The student as a copy that may be trained, with a name for it."""
    if is_folder(spec):
        module = load_student(spec, trust=trust, progress=progress)
        if weights is not None:
            load_weights(module, Path(weights).expanduser(), progress)
        return Teacher(str(spec), module)
    if isinstance(spec, str) and ":" not in spec and spec not in TEACHERS.names():
        raise UserError(
            f"no student {spec!r}: it is neither a run folder nor a shipped network ({', '.join(TEACHERS.names())}); give one of "
            "these, or module:factory or file.py:factory for a network of your own"
        )
    with seeded(seed):
        found = load_teacher(spec, weights, progress, role="student")
    module = copy.deepcopy(found.module).eval()
    if not any(p.requires_grad for p in module.parameters()):
        raise UserError(f"the student {found.name!r} has no parameter that may be trained; set requires_grad")
    return replace(found, module=module)


def is_folder(student: Any) -> bool:
    """Whether a student is given as a folder, which has to be that of a run."""
    return isinstance(student, (str, Path)) and str(student) not in ("", ".") and Path(student).is_dir()


def _admit(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if a folder holds the distillation of something else, or otherwise."""
    path = folder / SETTINGS
    if not path.is_file() or not any((folder / name).is_file() for name in (RESULT, CHECKPOINT)):
        return
    before = read_json(path)
    before = before if isinstance(before, dict) else {}
    if name := difference(*({n: v for n, v in each.items() if n not in NOTES} for each in (before, settings))):
        raise UserError(
            f"{folder} holds a distillation that was begun with {name}={before.get(name)!r}, not {settings.get(name)!r}; choose "
            "another --out, or delete the folder"
        )


def _finished(folder: Path, module: nn.Module) -> Distilled | None:
    """The outcome that is in the folder, if its files are there."""
    if not (folder / RESULT).is_file():
        return None
    try:
        result = record(DistillationResult, read_json(folder / RESULT))
        written = [name for name, apart in result.exports.items() if apart is not None]
        if not all((folder / name).is_file() for name in written):
            return None
        load_weights(module, folder / "student.safetensors")
        return Distilled(module, Finetuned.from_json(result.finetune), result, folder)
    except (UserError, Damaged) as error:
        warnings.warn(f"{folder / RESULT}: {error}; the student is made again", stacklevel=3)
        return None


class _Training:
    """Teacher, student and data that were seen to suit each other; calling it trains the student.

    Raises:
        UserError: If they do not.
    """

    def __init__(
        self, problem: ProblemSpec, spec: FinetuneSpec, master: Teacher, pupil: Teacher, task: Task, progress: bool
    ) -> None:
        self.spec, self.name, self.progress = spec, master.name, progress
        self.data = data = data_of(problem, master, progress)
        self.task = agreement.on(task, str(problem.task), data)
        example = data.calibration(EXAMPLES)
        with one_thread():
            self.outputs = self._checked(master, pupil, example)
            self.macs = [Macs().count(each.module, example[:1]) for each in (master, pupil)]
        self.device = devices.fastest_for(max(self.macs)) if problem.device == "auto" else devices.usable(problem.device)
        self.teacher, self.student = copy.deepcopy(master.module).to(self.device), pupil.module.to(self.device)
        with one_thread():
            for network in (self.teacher, self.student):
                if needs_plain([copy.deepcopy(network)], (example.to(self.device),)):  # which leaves strides of either layout
                    network.meta = {**getattr(network, "meta", {}), PLAIN: True}  # type: ignore[assignment]

    def _checked(self, master: Teacher, pupil: Teacher, example: Tensor) -> tuple[int, ...]:
        """The shape of the outputs for one example."""
        found = answers(master.module, master.name, example)
        self.task.check(found, self.data, master.name)
        other = answers(pupil.module, pupil.name, example, cure="it has to take what its teacher takes", role="student")
        if other.shape != found.shape:
            raise UserError(
                f"the student {pupil.name!r} answers with {tuple(other.shape[1:])} and the teacher {master.name!r} with "
                f"{tuple(found.shape[1:])}; give a student with the teacher's outputs"
            )
        return tuple(found.shape[1:])

    def __call__(self, folder: Path, seed: int, loss: str) -> Distilled:
        """The student after its training, with its files."""
        task, data, spec, teacher, metric = self.task, self.data, self.spec, self.teacher, self.task.metric
        validation = self._measured(data.validation)
        recipe = self._recipe()
        try:
            done = finetune(
                self.student, teacher, data, recipe, task, loss=spec.loss, temperature=spec.temperature,
                label_weight=spec.label_weight, seed=seed, checkpoint=folder / CHECKPOINT, progress=self.progress, recorded=False,
            )  # fmt: skip
        except Diverged as error:
            raise UserError(f"the training diverges in its first epoch ({error}); give a lower lr than {recipe.lr:g}") from error
        except (UserError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - what a network raises is up to its author
            raise UserError(
                f"the training ended ({reason_of(error)}); whole epochs are in {folder / CHECKPOINT}: see to the cause, and go "
                "on with the same command"
            ) from error
        with one_thread(), channels_last(self.student):
            tested = predict(self.student, data, data.test)
        student = self.student.cpu()
        size = save_weights(student, folder).stat().st_size
        about = described(self.name, data, data.input_shape, data.outputs if data.labelled else self.outputs[0])
        test = self._measured(data.test)
        before, after = (float(sum(p.numel() for p in network.parameters())) for network in (teacher, student))
        counts = len(data.validation), len(data.test)
        if doubt := trained_on(task, validation[0], test[0], *counts):
            warnings.warn(DoubtfulTeacher(f"the teacher {self.name!r} has {doubt}"), stacklevel=3)
        result = DistillationResult(
            metric=metric,
            teacher=NetworkNumbers(validation[0], test[0], before, self.macs[0], state_bytes(teacher)),
            student=NetworkNumbers(done.best_validation, done.metric_test, after, self.macs[1], size),
            finetune=done.to_json(),
            recipe=recipe.to_json() | {"loss": loss} | loss_settings(task, spec.loss, spec.temperature, spec.label_weight),
            exports=export_all(student, data.calibration(8), folder, metadata=about, progress=self.progress),
            metadata=about,
            by_class=tuple(by_class(task, data, test[1], tested)),
        )
        write_json(folder / RESULT, asdict(result))
        return Distilled(student, done, result, folder)

    def _measured(self, split: Split) -> tuple[float, Tensor]:
        """The teacher's main metric on examples, and its outputs. Warns if it and the labels do not seem to belong together."""
        with one_thread(), channels_last(self.teacher):
            outputs = predict(self.teacher, self.data, split)
        found = self.task.metrics(outputs, split.labels if self.data.labelled else outputs)[self.task.metric]
        if self.data.labelled and split is self.data.validation and (doubt := doubts(self.task, outputs, split.labels)):
            known = f"{self.task.metric} {found:.1%} on validation examples"
            warnings.warn(DoubtfulTeacher(f"the teacher {self.name!r} has {known}, {doubt}. {CHECK}"), stacklevel=4)
        return found, outputs

    def _recipe(self) -> Recipe:
        """The recipe, in float32 where one of the networks does not run in bfloat16."""
        data, spec = self.data, self.spec
        function = loss_function(self.task, spec.loss)
        recipe = finetuning_recipe(len(data.train), spec.epochs, self.device, spec.lr, spec.batch_size, function, spec.accumulate)
        example = data.calibration(2)
        if recipe.precision == "bfloat16" and not all(takes_bfloat16(each, example) for each in (self.teacher, self.student)):
            return replace(recipe, precision="float32")
        return recipe


__all__ = ["Distilled", "distil"]
