"""The model card: what is in a folder that travels, its numbers, the command behind them, and how it is used; nothing is made up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress_env.distill.finetune import Finetuned
from compress_env.distilled import DistillationResult
from compress_env.errors import UserError
from compress_env.files import read_json
from compress_env.hub.contents import GRAPH, RESULT
from compress_env.records import Damaged, record, value_of
from compress_env.report.formats import DASH, metric, unit_beside
from compress_env.report.promise import sentences
from compress_env.search.reopened import kept
from compress_env.search.result import FinalPolicy, ResourceName, Result
from compress_env.search.run import POLICY
from compress_env.search.store import RunFolder, flat
from compress_env.students import SETTINGS, WEIGHTS
from compress_env.teachers import TEACHERS

LIBRARY = "compress-env"


def card(folder: Path, repo_id: str, license_: str | None) -> str:
    """The text of README.md for a folder of `contents.stage`: YAML as the Hub reads it, then Markdown.

    Args:
        folder: The folder.
        repo_id: `USER/NAME`, for the commands in it.
        license_: The identifier of a licence, such as "mit"; without one, the card says that none is stated.

    Raises:
        UserError: If one of its files is damaged.
    """
    from huggingface_hub import ModelCardData

    settings = _settings(folder)
    result = _result(folder) if (folder / WEIGHTS).is_file() else None
    head: dict[str, Any] = {"tags": [LIBRARY, "reinforcement-learning"]}
    lines = [f"# {_plain(repo_id.partition('/')[2])}", ""]
    if result is not None:
        kind = "pruning" if isinstance(result, Result) else "knowledge-distillation"
        head = {"tags": [LIBRARY, "model-compression", kind]} | _evaluation(result, settings, repo_id)
        lines += [*_student(result, settings), *_made(result, settings), *_use(folder, result, settings, repo_id)]
    if (folder / POLICY).is_file():
        lines += _policy(folder, settings, repo_id, alone=result is None)
    if license_ is None:
        lines += ["", "## License", "", "None is stated."]
    data = ModelCardData(license=license_, library_name=LIBRARY, **head)
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _settings(folder: Path) -> Mapping[str, Any]:
    """Settings of the run, or of the distillation, by name; none for a policy alone."""
    if (folder / SETTINGS).is_file():
        return read_json(folder / SETTINGS)
    return {**flat(run := RunFolder(folder).recorded()), **run} if (folder / "run.json").is_file() else {}


def _result(folder: Path) -> Result | DistillationResult:
    if not (folder / SETTINGS).is_file() and (found := RunFolder(folder).result()):
        return found
    try:
        other = record(DistillationResult, read_json(folder / RESULT))
        Finetuned.from_json(other.finetune)
        return other
    except Damaged as error:
        raise UserError(f"{RESULT} is damaged ({error}); distil again in another folder") from None


def _evaluation(result: Result | DistillationResult, settings: Mapping[str, Any], repo_id: str) -> dict[str, Any]:
    """The accuracy on test data as the Hub's model-index has it, and the kind of task."""
    from huggingface_hub import EvalResult

    pictures = len(_shape(result)) == 3
    task = str(settings.get("task"))
    kind = "image-classification" if task == "classification" and pictures else task
    data = str(result.metadata.get("data"))
    found = EvalResult(
        task_type=kind, dataset_type=data, dataset_name=data, dataset_split="test", metric_type=result.metric,
        metric_value=result.student.metric_test,
    )  # fmt: skip
    known = {"pipeline_tag": kind} if kind == "image-classification" else {}
    return known | {"metrics": [result.metric], "model_name": repo_id.partition("/")[2], "eval_results": [found]}


def _student(result: Result | DistillationResult, settings: Mapping[str, Any]) -> list[str]:
    """What it is, and its numbers beside the teacher's."""
    teacher, data = (f"`{_plain(str(result.metadata.get(name)))}`" for name in ("teacher", "data"))
    rows = [[f"{result.metric}, test data", metric(result.teacher.metric_test), metric(result.student.metric_test)]]
    if isinstance(result, DistillationResult):
        lines = [f"The network `{_plain(str(settings.get('student')))}`, distilled from {teacher} on {data}.", ""]
        rows += [[name, _number(getattr(result.teacher, key)), _number(getattr(result.student, key))]
                 for name, key in (("parameters", "params"), ("MACs", "macs"))]  # fmt: skip
        head, last = ["", "teacher", "student"], []
    else:
        met = "within" if result.feasible else "which exceeds"
        limits = ", ".join(f"{_number(limit)} {_unit(result.resources[name])}" for name, limit in result.budget.items())
        lines = [f"A smaller network, made of {teacher} and distilled from it on {data}, {met} the budget of {limits}.", ""]
        for name, resource in result.resources.items():
            unit = unit_beside(resource.label, resource.unit)
            cells = (result.teacher.usage[name], result.student.usage[name])
            limit = _number(result.budget[name]) if name in result.budget else DASH
            rows.append([f"{_plain(resource.label)}{unit and f', {unit}'}", *map(_number, cells), limit])
        rows[0].append(DASH)
        head, last = ["", "teacher", "student", "budget"], [DASH]
    rows.append(["size of the weights, bytes", _number(result.teacher.file_bytes), _number(result.student.file_bytes), *last])
    lines += _table(head, rows)
    if isinstance(result, Result):
        if any(resource.measured for resource in result.resources.values()):
            where = f" on {_plain(result.device)}" if result.device else ""
            lines += ["", f"Measured with {result.runtime}, torch {result.versions.get('torch', DASH)}{where}."]
        if result.promise:
            lines += ["", *(f"- {text}" for _, text in sentences(result.promise, result.metric))]
    return lines


def _made(result: Result | DistillationResult, settings: Mapping[str, Any]) -> list[str]:
    """The command, and what it did."""
    done, command = Finetuned.from_json(result.finetune), settings.get("command")
    lines = ["", "## How it was made", ""]
    lines += ["```", str(command), "```", ""] if command else ["From Python.", ""]
    if isinstance(result, Result):
        lines.append(
            f"The agent `{_plain(result.agent)}` judged {result.evaluations:,} students (seed {result.seed}); the student is that of "
            f"trial {result.best_trial}."
        )
    versions = settings["versions"] if isinstance(settings.get("versions"), Mapping) else {}
    lines += [
        f"Full distillation: loss `{_plain(str(result.recipe.get('loss')))}`, best epoch {done.best_epoch} of {done.epochs}.",
        f"compress-env {versions.get('compress-env', DASH)}, torch {versions.get('torch', DASH)}. `{RESULT}` has all numbers.",
    ]
    return lines


def _use(folder: Path, result: Result | DistillationResult, settings: Mapping[str, Any], repo_id: str) -> list[str]:
    """How to load it, in this package and in ONNX Runtime."""
    distilled = isinstance(result, DistillationResult)
    needed = settings.get("student" if distilled else "teacher")
    out = repo_id.partition("/")[2]
    given = f'"{out}"'
    if not (isinstance(needed, str) and needed in TEACHERS.names()):
        given += f', network="{needed if isinstance(needed, str) and ":" in needed else "net.py:make"}"'
    lines = [
        "", "## Use", "", "```", 'pip install "compress-env[hub]"', f"compress-env pull {repo_id} --out {out}", "```", "", "```python",
        "import compress_env", "", f"student = compress_env.load_student({given})", "```", "",
    ]  # fmt: skip
    if "," in given:
        whose = "student" if distilled else "teacher"
        lines += [f"The code of the {whose} is not here: name your copy of it, or give the module.", ""]
    shape, mean = ", ".join(map(str, _shape(result))), result.metadata.get("mean")
    scale = f": pixels in [0, 1], minus {mean}, divided by {result.metadata.get('std')}, a channel each" if mean else ""
    lines.append(f"Inputs are `(n, {shape})`{scale}; outputs `(n, {result.metadata.get('outputs')})`.")
    if (folder / GRAPH).is_file():
        lines += [
            "", "Without this package, in ONNX Runtime:", "",
            "```python", "import onnxruntime", "",
            f'session = onnxruntime.InferenceSession("{out}/{GRAPH}")',
            'outputs = session.run(["logits"], {"input": inputs})[0]', "```",
        ]  # fmt: skip
    return lines


def _policy(folder: Path, settings: Mapping[str, Any], repo_id: str, alone: bool) -> list[str]:
    """What the policy is, and how it is applied."""
    out = repo_id.partition("/")[2]
    lines = ["", "## Policy", ""] if not alone else []
    lines.append(f"`{POLICY}` decides which layers of a network are removed and shrunk to meet a budget.")
    if settings:
        budget = settings["budget"].items() if isinstance(settings.get("budget"), Mapping) else ()
        limits = ", ".join(f"{_plain(name)} {'..'.join(map(str, v)) if isinstance(v, list) else v}" for name, v in budget)
        agent, evaluations, teacher, seed = (_plain(str(settings.get(n))) for n in ("agent", "evaluations", "teacher", "seed"))
        told = f"teacher `{teacher}`, budget {limits}, seed {seed}"
        lines.append(f"The agent `{agent}` learned it in {evaluations} evaluations: {told}.")
    else:
        lines.append(_seen(folder / POLICY))
    if alone and (command := settings.get("command")):
        lines += ["", "```", str(command), "```"]
    found = kept(RunFolder(folder), "search.json", lambda d: value_of(FinalPolicy | None, d.get("final_policy"), "final_policy"))
    if found:
        numbers = ", ".join(f"{name} {metric(value)}" for name, value in found.metrics.items())
        lines += ["", f"The student that it proposes, not distilled, on validation data: {numbers}, reward {found.reward:.3f}."]
    lines += [
        "", "```", 'pip install "compress-env[hub,export]"', f"compress-env pull {repo_id} --out {out}",
        f"compress-env policy apply {out}/{POLICY} --budget macs=50% --out runs/applied", "```",
    ]  # fmt: skip
    return lines


def _seen(policy: Path) -> str:
    """What a policy's file says of itself."""
    import onnx

    known = {entry.key: entry.value for entry in onnx.load(policy, load_external_data=False).metadata_props}
    return f"It observes {len(json.loads(known['observation']))} entries of a step, and its actions are {_plain(known['actions'])}."


def _shape(result: Result | DistillationResult) -> list[Any]:
    """Of one input; nothing if the result does not have it."""
    shape = result.metadata.get("input_shape")
    return list(shape) if isinstance(shape, (list, tuple)) else []


def _unit(resource: ResourceName) -> str:
    return _plain(resource.unit or resource.label)


def _number(value: float) -> str:
    """Whole numbers with commas, others with three digits behind the point."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(text: str) -> str:
    """A name on one line, without what Markdown or HTML would take for its own."""
    return "".join(f"\\{c}" if c in "|*[]<>\\" else c for c in " ".join(text.split()))
