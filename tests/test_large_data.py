"""Large networks and large data: in parts, and as they lie on disk."""

from __future__ import annotations

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress_env.allocation.sensitivities import probes
from compress_env.api import finish, run_search
from compress_env.data import Data, load_data, stored
from compress_env.data.augmentation import find
from compress_env.data.dataset import in_order, training_batches
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.search.run import search
from compress_env.spec import EnvironmentSpec, ProblemSpec, SearchSpec
from compress_env.surgery import layerwise
from compress_env.surgery.build import build_student
from compress_env.surgery.layerwise import part_size
from compress_env.surgery.ranking import reconstruction
from compress_env.surgery.refit import Refit, renormalise


@pytest.fixture(scope="module")
def mobilenet() -> Problem:
    return Problem.build(ProblemSpec(teacher="mobilenetv2-digits", ranking="magnitude"))


def in_parts(monkeypatch, graph, inputs, size: int) -> None:
    """Have that many inputs run in parts of `size`."""
    each = int(graph.view(frozenset()).activation_bytes(graph.full))
    monkeypatch.setattr(layerwise, "WHOLE", each * inputs - 1)
    monkeypatch.setattr(layerwise, "PART", each * size)


def test_small_passes_are_whole_and_large_ones_in_parts_that_fit(mobilenet, monkeypatch):
    graph, cpu = mobilenet.graph, torch.device("cpu")
    assert part_size(graph, 512, cpu) == 512
    in_parts(monkeypatch, graph, 100, 7)
    assert (part_size(graph, 99, cpu), part_size(graph, 100, cpu)) == (99, 7)
    assert part_size(graph, 100, torch.device("cuda")) == 100
    monkeypatch.setattr(layerwise, "PART", 1)
    assert part_size(graph, 100, cpu) == 1


def test_a_ranking_in_parts_takes_the_same_samples(mobilenet, monkeypatch):
    graph, x = mobilenet.graph, mobilenet.data.calibration(100)
    monkeypatch.setattr(reconstruction, "NUMBERS", 2**15)  # fewer than there are, so that some are left out
    moments = []
    for size in (100, 7):
        sampler = reconstruction._Sampler(mobilenet.whole, graph, 100)
        with torch.no_grad():
            for part in x.split(size):
                sampler.run(part)
                sampler.seen += len(part)
        moments.append(sampler.moments)
    assert moments[0].keys() == moments[1].keys()
    for name, found in moments[0].items():
        for a, b in zip(found, moments[1][name], strict=True):
            assert np.abs(a - b).max() < 1e-4 * np.abs(a).max(), name
    whole = reconstruction._orders(mobilenet.whole, graph, x)
    in_parts(monkeypatch, graph, 100, 7)
    for name, (order, _) in reconstruction._orders(mobilenet.whole, graph, x).items():
        assert (order == whole[name][0]).double().mean() > 0.9, name  # ties go either way with rounding


def test_a_refit_in_parts_gives_the_same_student(mobilenet, monkeypatch):
    graph, x = mobilenet.graph, mobilenet.data.calibration(60)
    plan = graph.canonical(frozenset([next(iter(graph.blocks))]), graph.allowed(graph.full * 0.6))
    whole = build_student(mobilenet.teacher.module, graph, plan)
    Refit(mobilenet.whole, graph, x)(whole, plan)
    in_parts(monkeypatch, graph, 60, 7)
    parts = build_student(mobilenet.teacher.module, graph, plan)
    Refit(mobilenet.whole, graph, x)(parts, plan)
    fresh = build_student(mobilenet.teacher.module, graph, plan)
    test = mobilenet.data.calibration(200)
    with torch.no_grad():
        expected, found, before = whole(test), parts(test), fresh(test)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert (before - expected).abs().max() > 0.1 * expected.abs().max()
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        if "running" in name:
            assert torch.allclose(a, b, rtol=1e-2, atol=1e-3), name


def test_statistics_of_parts_are_those_of_the_whole(mobilenet):
    x = mobilenet.data.calibration(50)
    student = build_student(mobilenet.teacher.module, mobilenet.graph, mobilenet.graph.canonical(frozenset(), mobilenet.graph.full))
    renormalise(student, x.split([20, 7, 23]))
    norm = next(m for m in student.modules() if hasattr(m, "running_mean"))
    conv = next(m for m in student.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        read = conv(x).double()
    assert np.allclose(norm.running_mean, read.mean((0, 2, 3)), atol=1e-5)
    assert np.allclose(norm.running_var, read.var((0, 2, 3), correction=0), rtol=1e-4)


def test_what_is_read_last_is_held_no_longer(mobilenet):
    student = build_student(mobilenet.teacher.module, mobilenet.graph, mobilenet.graph.canonical(frozenset(), mobilenet.graph.full))
    held: list[int] = []

    class Counting(layerwise.Layerwise):
        def run_node(self, node):
            super().run_node(node)
            held.append(max(len(run.env) for run in self.runs))

    with torch.no_grad():
        Counting(student).run(mobilenet.data.calibration(6).split(2))
    assert max(held) <= 3  # a value, the one that is made of it, and one that a later addition reads


# Data as it lies on disk

MEAN, STD = (0.5,) * 3, (0.25,) * 3


def net() -> nn.Module:
    """A small network for pictures of 8x8 pixels and three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
        ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes, 60 pictures each to train on and 10 to test, of unequal sizes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 10)):
        for number in range(3):
            where = root / part / f"class{number}"
            where.mkdir(parents=True)
            for i in range(count):
                height, width = rng.integers(8, 14, 2)
                pixels = rng.integers(0, 180, (height, width, 3))
                pixels[..., number] += 75
                Image.fromarray(pixels.astype(np.uint8)).save(where / f"{i:02}.png")
    return root


@pytest.fixture
def on_disk(monkeypatch):
    """Whatever is loaded stays on disk."""
    monkeypatch.setattr(stored, "IN_MEMORY", 0)


def both(spec, monkeypatch, **options) -> tuple[Data, Data]:
    """The same data in memory and not."""
    options = {"image_size": 8, "normalization": (MEAN, STD)} | options
    held = load_data(spec, **options)
    monkeypatch.setattr(stored, "IN_MEMORY", 0)
    found = load_data(spec, **options)
    assert found.stored and not held.stored
    return held, found


def test_the_same_pictures_in_memory_and_on_disk_give_the_same_trials(folder, monkeypatch):
    trials = []
    for data in both(f"imagefolder:{folder}", monkeypatch):
        settings = {"calibration_images": 40, "distill_steps": 2, "batch_size": 8, "validation_images": 7}
        spec = EnvironmentSpec.of_keywords(teacher=net(), data=data, budget={"macs": 0.6}, actions="absolute", evaluator=settings)
        found = search(Objective(spec), "random", 4, 0, progress=False).trials
        trials.append([(t.plan, t.evaluation, t.reward) for t in found])
    assert trials[0] == trials[1]


@pytest.mark.parametrize("augmentation", [None, "resized-crop", lambda x: x.roll(int(torch.randint(8, ())), -1)])
def test_the_same_pictures_in_memory_and_on_disk_are_learned_from_alike(folder, monkeypatch, augmentation):
    from dataclasses import replace

    found = []
    for data in both(f"imagefolder:{folder}", monkeypatch):
        if augmentation:
            data = replace(data, augmentation=find(augmentation, data.input_shape))
        generator = torch.Generator().manual_seed(3)
        found.append([list(training_batches(data, 32, generator, torch.device("cpu"), True)) for _ in range(2)])
    for before, after in zip(*found):
        assert len(before) == len(after) == 162 // 32
        for (rows, inputs), (others, found_inputs) in zip(before, after):
            assert torch.equal(rows, others) and torch.equal(inputs, found_inputs)
    assert not torch.equal(found[0][0][0][1], found[0][1][0][1])


def test_what_is_on_disk_is_read_in_order_by_several_processes_too(folder, monkeypatch):
    held, found = both(f"imagefolder:{folder}", monkeypatch)
    for workers in (0, 2):
        monkeypatch.setattr(stored, "workers", lambda workers=workers: workers)
        assert torch.equal(torch.cat(list(in_order(found.train, 7))), held.train.inputs)
        assert torch.equal(found.train.inputs[:], held.train.inputs)
    assert torch.equal(found.test.take(torch.tensor([5, 3])).inputs[:], held.test.inputs[[5, 3]])
    assert torch.equal(found.calibration(9), held.calibration(9))


@pytest.mark.filterwarnings("ignore::compress_env.errors.DoubtfulTeacher")
def test_a_run_on_disk_records_its_sample_and_shows_its_augmentation(folder, on_disk, tmp_path):
    spec = EnvironmentSpec.of_keywords(
        teacher=net(), data=f"images:{folder}", image_size=8, mean=MEAN, std=STD, augmentation="resized-crop", actions="absolute",
        evaluator={"calibration_images": 16},
    )  # fmt: skip
    run, objective = run_search(spec, SearchSpec("uniform", {}, 2, 0), tmp_path / "run", progress=False)
    done = finish(run, 1, objective=objective, progress=False)
    sample = json.loads((tmp_path / "run" / "sample.json").read_text())
    data = objective.problem.data
    assert (len(data.train), len(data.validation), len(data.test)) == (162, 18, 30)
    assert len(sample["validation"]) == 18 and not set(sample["validation"]) & set(sample["calibration"])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metric"] == "agreement" and result["teacher"]["metric_test"] == 1.0
    assert result["finetune"]["augmentation"] == "resized-crop" == done.finetuned.augmentation
    page = done.report().read_text()
    assert "Test agreement" in page and "accuracy" not in page.lower()
    assert set(done.trials[0].evaluation.metrics) == {"agreement"}


class Counted(torch.utils.data.Dataset):
    """A million pictures, each made when it is asked for."""

    def __init__(self, count: int = 1_000_000):
        self.targets, self.asked = [i % 3 for i in range(count)], set()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i):
        self.asked.add(i)
        return torch.full((3, 32, 32), i % 256, dtype=torch.uint8), self.targets[i]


def test_a_large_data_set_is_asked_for_the_examples_that_are_needed(monkeypatch):
    monkeypatch.setattr(stored, "workers", lambda: 0)  # so that they are counted here
    train, test = Counted(), Counted(1000)
    data = load_data((train, test))
    assert data.stored and data.outputs == 3 and len(data.train) + len(data.test) == 900_001 + 1000
    rows = data.sample()["calibration"][:3]
    mean, std = (values[0] for values in data.normalization)
    assert torch.allclose(data.calibration(3)[:, 0, 0, 0], (torch.tensor(rows) % 256 / 255 - mean) / std)
    assert torch.equal(data.train.labels[:9], torch.tensor(data.train.inputs.rows[:9] % 3))
    assert len(data.validation_subset(100)) == 100
    assert len(train.asked) < 4000


def test_a_large_data_set_has_to_tell_its_labels():
    train = Counted()
    del train.targets
    train.__class__ = type("Silent", (Counted,), {"__len__": lambda _: 10**6, "__getitem__": lambda _, i: (torch.zeros(3, 32, 32), 0)})
    with pytest.raises(UserError, match="training data is a Silent of 1,000,000 examples.*give it an attribute targets"):
        load_data((train, train))
    wrong = Counted()
    wrong.__class__ = type("Wrong", (Counted,), {"__getitem__": lambda _, i: (torch.zeros(3, 32, 32), 7)})
    with pytest.raises(UserError, match="has the label 7, and its targets say"):
        load_data((wrong, wrong))


def test_a_picture_that_cannot_be_read_while_training_is_named(folder, on_disk, monkeypatch):
    data = load_data(f"imagefolder:{folder}", image_size=8)
    read = data.train.inputs.read

    def broken(i: int):
        if i == 37:
            raise OSError("gone")
        return read(i)

    data.train.inputs.read = broken
    with pytest.raises(UserError, match=r"^an input cannot be read: OSError: gone$"):
        list(training_batches(data, 162, torch.Generator().manual_seed(0), torch.device("cpu"), False))


def test_an_augmentation_has_to_give_pictures(folder, monkeypatch):
    with pytest.raises(UserError, match=r"augmentation.*no function of an image; give a name \(resized-crop, trivial\)"):
        find(3, (3, 8, 8))
    with pytest.raises(UserError, match="is for images"):
        find("trivial", (5,))
    change = find(lambda x: x[:, :4], (3, 8, 8))
    with pytest.raises(UserError, match=r"makes \(3, 4, 8\)"):
        change(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.Generator())
    change = find(lambda x: 1 / 0, (3, 8, 8))
    with pytest.raises(UserError, match="raises ZeroDivisionError"):
        change(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.Generator())


def test_an_augmentation_is_looked_up_before_data_are_read(tmp_path):
    spec = ProblemSpec(teacher=net(), data=f"images:{tmp_path / 'gone'}", augmentation="trivail")
    with pytest.raises(UserError, match="no augmentation 'trivail'; did you mean 'trivial'"):
        Problem.build(spec)


def test_no_augmentation_leaves_pictures_as_they_are(folder):
    spec = ProblemSpec(teacher=net(), data=f"imagefolder:{folder}", image_size=8, augmentation="none")
    data = Problem.build(spec).data
    assert data.augmented == "none"
    (rows, inputs), *_ = training_batches(data, 8, torch.Generator().manual_seed(0), torch.device("cpu"), True)
    assert torch.equal(inputs, data.train.inputs[rows])


def test_a_random_state_is_not_touched_by_augmentation():
    before = torch.get_rng_state()
    find("trivial", (3, 8, 8))(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


def test_students_learn_from_pictures_without_labels(folder):
    problem = Problem.build(ProblemSpec(teacher=net(), data=f"images:{folder}", image_size=8, mean=MEAN, std=STD))
    student = problem.student(problem.graph.canonical(frozenset(), problem.graph.allowed(problem.graph.full * 0.7)))
    given = []

    def loss(outputs, answers, labels, temperature):
        given.append(torch.equal(labels, answers.argmax(1)))
        return problem.task.losses.get("hinton")(outputs, answers, labels, temperature)

    done = finetune(student, problem.whole, problem.data, Recipe(epochs=2, batch_size=32), problem.task, loss=loss, progress=False)
    assert given and all(given)
    assert problem.task.metric == "agreement" and done.history[done.best_epoch] >= done.history[0]


def test_a_task_that_needs_labels_says_so(folder):
    class Regression:
        metric, losses, loss = "r2", None, "mse"
        metrics = divergence = agreement = check = None

    with pytest.raises(UserError, match="needs labels, and the data have none; give it a method answers"):
        Problem.build(ProblemSpec(teacher=net(), data=f"images:{folder}", image_size=8, task=Regression()))


def test_hugging_face_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "compress-env\[hf\]"'):
        load_data("hf:cifar10")


@pytest.mark.parametrize("labelled", [True, False])
def test_a_hugging_face_data_set_on_disk(tmp_path, monkeypatch, folder, labelled):
    hf = pytest.importorskip("datasets")
    hf.disable_progress_bars()
    whole = {}
    for part in ("train", "test"):
        files = sorted((folder / part).glob("*/*.png"))
        columns = {"picture": [str(f) for f in files]} | ({"kind": [f.parent.name for f in files]} if labelled else {})
        kinds = {"picture": hf.Image()} | ({"kind": hf.ClassLabel(names=[f"class{i}" for i in range(3)])} if labelled else {})
        whole[part] = hf.Dataset.from_dict(columns, features=hf.Features(kinds))
    hf.DatasetDict(whole).save_to_disk(tmp_path / "set")
    held, found = both(f"hf:{tmp_path / 'set'}", monkeypatch)
    assert held.labelled is labelled and (held.outputs == 3) is labelled
    own = load_data(f"imagefolder:{folder}", image_size=8)
    for data in (held, found):
        assert torch.equal(data.test.inputs[:], own.test.inputs[:])
        assert not labelled or torch.equal(data.train.labels, own.train.labels)
    with pytest.raises(UserError, match="give an image_size"):
        load_data(f"hf:{tmp_path / 'set'}").train.inputs[:]
    with pytest.raises(UserError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path / 'none'}")


# What comes before the first student


def test_a_large_network_is_probed_with_fewer_students_on_fewer_images(monkeypatch):
    spec = EnvironmentSpec.of_keywords(teacher="resnet8-digits", ranking="magnitude")
    small = Objective(spec)
    assert not small.problem.in_parts
    monkeypatch.setattr(layerwise, "WHOLE", 0)
    monkeypatch.setattr(layerwise, "PART", 1 << 20)
    large = Objective(spec)
    assert large.problem.in_parts
    shrunk = [plan for plan in probes(large.problem) if not plan.removed]
    assert len(shrunk) == 2 * len(large.problem.graph.groups) < len(probes(small.problem)) / 2
    asked = []
    outputs = Evaluator.outputs
    monkeypatch.setattr(Evaluator, "outputs", lambda self, *a: asked.append(len(self.validation)) or outputs(self, *a))
    found = large.sensitivities
    assert found.evaluations == len(probes(large.problem)) == len(asked) and set(asked) == {64}
    assert len(large.evaluator.validation) > 64 and not large.evaluator._known
    assert all(found.curve(name, group.size)[-1] == 0 for name, group in large.problem.graph.groups.items())


def test_making_an_environment_judges_no_student(monkeypatch):
    def judged(*_, **__):
        raise AssertionError("a student is judged")

    monkeypatch.setattr("compress_env.objective.measure", judged)
    env = gym.make("LayerRemoval-v0").unwrapped
    assert env.observation_space.shape == (26,)
    with pytest.raises(AssertionError, match="a student is judged"):
        env.reset(seed=0)
