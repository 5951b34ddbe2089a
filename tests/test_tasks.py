"""Metrics, divergence and losses have the values of their formulas, in plain numpy; nothing but tasks knows about classes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import compress_env.agents
from compress_env.data.dataset import Split, make_data
from compress_env.distill.finetune import loss_function, loss_settings
from compress_env.errors import UnknownName, UserError
from compress_env.tasks import TASKS, load_task
from compress_env.tasks.classification import Classification

STUDENT = np.array([[1.0, 0.0, -0.5], [0.2, 0.1, 0.9]])
TEACHER = np.array([[2.0, 0.5, 1.0], [-1.0, 0.3, 0.4]])
LABELS = np.array([0, 2])
T = 3.0


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def kl(q: np.ndarray, p: np.ndarray) -> float:
    """KL(q || p) of rows, averaged."""
    return float((q * np.log(q / p)).sum(1).mean())


def cross_entropy() -> float:
    return float(-np.log(softmax(STUDENT)[[0, 1], LABELS]).mean())


def loss(name: str, student: np.ndarray = STUDENT, **settings: float) -> float:
    of = TASKS.get("classification").losses.get(name)
    return of(torch.tensor(student), torch.tensor(TEACHER), torch.tensor(LABELS), T, **settings).item()


def test_hinton_is_nine_tenths_of_the_squared_temperature_times_the_kl_and_a_tenth_of_the_cross_entropy():
    soft = kl(softmax(TEACHER / T), softmax(STUDENT / T))
    assert loss("hinton") == pytest.approx(0.9 * T**2 * soft + 0.1 * cross_entropy())


def test_dkd_weighs_the_other_classes_eight_times():
    p, q = softmax(STUDENT / T), softmax(TEACHER / T)
    rows = np.arange(2)
    right = [np.stack([x[rows, LABELS], 1 - x[rows, LABELS]], 1) for x in (q, p)]
    others = [np.array([np.delete(x[i], LABELS[i]) / (1 - x[i, LABELS[i]]) for i in rows]) for x in (q, p)]
    assert loss("dkd") == pytest.approx(T**2 * (kl(*right) + 8 * kl(*others)) + cross_entropy())


def test_dist_correlates_over_classes_and_over_examples():
    p, q = softmax(STUDENT / T), softmax(TEACHER / T)
    over_classes = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    over_examples = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    assert over_classes > 0.01 and over_examples > 0.01  # either one would be missed
    assert loss("dist") == pytest.approx(2 * T**2 * (over_classes + over_examples) + cross_entropy())


def test_standardised_does_not_see_the_scale_of_the_logits():
    def standard(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True) / (T / 2)

    soft = kl(softmax(standard(TEACHER)), softmax(standard(STUDENT)))
    assert loss("standardised") == pytest.approx(9 * (T / 2) ** 2 * soft + 0.1 * cross_entropy(), rel=1e-5)
    assert loss("standardised", 5 * TEACHER + 1) == pytest.approx(
        -0.1 * float(np.log(softmax(5 * TEACHER + 1)[[0, 1], LABELS]).mean()), abs=1e-5
    )


def test_mimic_is_half_the_squared_distance_and_labels_ignores_the_teacher():
    assert loss("mimic") == pytest.approx(0.5 * ((STUDENT - TEACHER) ** 2).sum() / 2)
    assert loss("labels") == pytest.approx(cross_entropy())


def test_the_label_weight_is_that_of_the_cross_entropy_and_hintons_soft_part_has_the_rest():
    soft = kl(softmax(TEACHER / T), softmax(STUDENT / T))
    assert loss("hinton", label_weight=0.3) == pytest.approx(0.7 * T**2 * soft + 0.3 * cross_entropy())
    for name in ("dkd", "dist", "standardised"):
        assert loss(name, label_weight=0.7) - loss(name, label_weight=0.2) == pytest.approx(0.5 * cross_entropy()), name


def test_a_setting_that_a_loss_does_not_have_is_refused_and_the_others_are_recorded():
    task = load_task("classification")
    assert loss_settings(task, None) == {"temperature": 4.0, "label_weight": 0.1}
    assert loss_settings(task, "dkd", 2.0, 0.5) == {"temperature": 2.0, "label_weight": 0.5}
    assert loss_settings(task, "mimic") == loss_settings(task, "labels") == {}
    for name, setting in (("mimic", "temperature"), ("mimic", "label_weight"), ("labels", "temperature"), ("labels", "label_weight")):
        with pytest.raises(UserError, match=f"the loss '{name}' has no {setting.replace('_', ' ')}"):
            loss_function(task, name, **{setting: 0.5})
    half = loss_function(task, "hinton", label_weight=0.5)
    assert half(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS), T).item() == loss("hinton", label_weight=0.5)


TORCHDISTILL = {
    "hinton": ("KDLoss", {"temperature": T, "alpha": 0.1}, 0.0),
    "standardised": ("LogitStdKDLoss", {"temperature": T / 2, "alpha": 0.1, "beta": 9.0}, 0.0),
    "dist": ("DISTLoss", {"beta": 2.0, "gamma": 2.0, "tau": T}, 1.0),
}
"""By loss: torchdistill's name and settings, and how much cross-entropy ours adds."""


@pytest.mark.parametrize("name", TORCHDISTILL)
def test_losses_are_torchdistills(name):
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs, settings, labelled = TORCHDISTILL[name]
    found = getattr(mid_level, theirs)(".", "output", ".", "output", **settings)
    outputs = [{".": {"output": torch.tensor(logits)}} for logits in (STUDENT, TEACHER)]
    assert loss(name) == pytest.approx(found(*outputs, torch.tensor(LABELS)).item() + labelled * cross_entropy(), rel=1e-6)


def test_the_gradient_of_the_soft_part_does_not_depend_on_a_high_temperature():
    def gradient(t: float) -> Tensor:
        logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
        hinton = TASKS.get("classification").losses.get("hinton")
        hinton(logits, torch.tensor([[0.1, 0.4, -0.5]]), torch.tensor([0]), t).backward()
        return logits.grad

    torch.testing.assert_close(gradient(50.0), gradient(100.0), rtol=0.02, atol=1e-4)


def test_every_loss_is_least_for_the_teacher_itself_where_the_labels_do_not_matter():
    """What is left for a student that gives the teacher's logits is the cross-entropy with the labels."""
    own = float(-np.log(softmax(TEACHER)[[0, 1], LABELS]).mean())
    weights = {"hinton": 0.1, "dkd": 1.0, "dist": 1.0, "standardised": 0.1, "mimic": 0.0, "labels": 1.0}
    assert set(weights) == set(TASKS.get("classification").losses.names())
    for name, weight in weights.items():
        assert loss(name, TEACHER) == pytest.approx(weight * own, abs=1e-6), name


def test_classification_measures_accuracy_kl_and_agreement():
    task = load_task("classification")
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert task.metrics(student, torch.tensor([0, 1, 1, 1])) == {"accuracy": 0.75} and task.metric == "accuracy"
    assert task.agreement(student, teacher) == 0.5 and task.agreement(teacher, teacher) == 1.0
    expected = kl(softmax(teacher.double().numpy()), softmax(student.double().numpy()))
    assert task.divergence(student, teacher) == pytest.approx(expected, rel=1e-5)
    assert task.divergence(teacher, teacher) == 0.0 != task.divergence(student, teacher)


def test_a_teacher_of_another_number_of_classes_and_labels_that_are_none_are_refused():
    whole = Split(torch.zeros(30, 1), torch.arange(30) % 3)
    data, task = make_data("a", whole, whole), load_task("classification")
    task.check(torch.zeros(2, 3), data, "net")
    for outputs, answer in ((torch.zeros(2, 2), r"\(2,\)"), (torch.zeros(2, 3, 1), r"\(3, 1\)"), ((), "a tuple")):
        with pytest.raises(UserError, match=rf"teacher 'net' answers with {answer}, but the data set 'a' has 3 classes"):
            task.check(outputs, data, "net")
    for labels in (torch.rand(30), torch.ones(30, 3, dtype=torch.long)):
        many = Split(torch.zeros(30, 1), labels)
        with pytest.raises(UserError, match="data set 'a' has labels of .* or give another task"):
            task.check(torch.zeros(2, 3), make_data("a", many, many, outputs=3), "net")


def test_a_task_is_found_by_name_place_or_itself(tmp_path):
    assert load_task("classification") is TASKS.get("classification")
    own = Classification()
    assert load_task(own) is own and isinstance(load_task(Classification), Classification)
    (tmp_path / "mine.py").write_text(
        "from compress_env.tasks.classification import Classification\n"
        "class Mine(Classification): metric = 'mine'\nmade = Mine()\nbroken = 3\n"
    )
    for name in ("Mine", "made"):
        assert load_task(f"{tmp_path / 'mine.py'}:{name}").metric == "mine"
    with pytest.raises(UserError, match="broken' lacks metric, losses, .*; see compress_env.tasks.Task"):
        load_task(f"{tmp_path / 'mine.py'}:broken")
    with pytest.raises(UnknownName, match="no task 'clasification'; did you mean 'classification'"):
        load_task("clasification")


# Who knows what

ELSE = {
    "surgery", "agents/n2n.py", "agents/sb3", "spec.py", "running.py", "distilling.py", "cli/distill.py", "data/label_names.py"
}  # fmt: skip
"""Where a word means something else: layers that networks have, the choices of an agent's policy, agents given as classes, the setting
by which users say how many outputs a task's data have, and the attribute in which others' data sets name their labels."""


def test_only_tasks_know_that_outputs_are_classes():
    package = Path(compress_env.__file__).parent
    agents = Path(compress_env.agents.__file__).parent
    files = {path: path.relative_to(package) for path in package.rglob("*.py")}
    files |= {path: Path("agents", path.relative_to(agents)) for path in agents.rglob("*.py")}
    found = set()
    for path, place in files.items():
        if any(place.is_relative_to(other) for other in ELSE | {"tasks"}):
            continue
        code = _without_docs(path.read_text()).replace("np.argmax", "").replace("--max-accuracy-drop", "")  # of the main metric
        if re.search(r"\b(accurac\w*|\w*softmax|argmax|classes|\w*_(?:accuracy|classes))\b", code):
            found.add(str(place))
    assert not found


def _without_docs(text: str) -> str:
    """The code without docstrings, other bare strings, and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if hasattr(node, "body") and isinstance(node.body, list):
            node.body = [n for n in node.body if not _is_text(n)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
