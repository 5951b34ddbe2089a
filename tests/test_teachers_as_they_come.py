"""Teachers as people bring them: each runs, or is refused with the same words by everything that needs a teacher."""

from __future__ import annotations

import sys
import threading
import warnings
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import compress_env
from compress_env.cli.main import main
from compress_env.data import load_data
from compress_env.distill.recipes import Recipe
from compress_env.distill.train import predict
from compress_env.errors import DoubtfulTeacher, UserError
from compress_env.problem import Measured, Problem
from compress_env.report.inspect import inspect
from compress_env.spec import ProblemSpec
from compress_env.tasks.classification import Classification
from compress_env.tasks.doubts import trained_on
from compress_env.teachers import load_teacher
from compress_env.teachers.admission import admitted

SHAPE = (3, 8, 8)


def pair(n: int = 60, shape: tuple[int, ...] = SHAPE, classes: int = 3):
    generator = torch.Generator().manual_seed(1)
    return tuple(TensorDataset(torch.randn(k, *shape, generator=generator), torch.arange(k) % classes) for k in (n, n // 3))


class Net(nn.Module):
    """A small residual network; `answer` says what becomes of its logits."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, classes)

    def forward(self, x):
        x = self.a(x).relu()
        x = x + self.b(x).relu()
        return self.answer(self.head(x.mean((2, 3))), x)

    def answer(self, logits, x):
        return logits


class Dict(Net):
    def answer(self, logits, x):
        return {"out": logits, "aux": logits}


class Tuple(Net):
    def answer(self, logits, x):
        return logits, x


class Sized(Net):
    """As timm's ViTs, it asserts the size of its images."""

    def forward(self, x):
        assert x.shape[2] == 16, f"Input height ({x.shape[2]}) doesn't match model (16)."
        return super().forward(x)


class Raises(Net):
    def answer(self, logits, x):
        raise KeyError("scale")


class Fixed(Net):
    """It takes two examples at once, and no other number."""

    def answer(self, logits, x):
        return logits.view(2, -1)


class OneRow(Net):
    def answer(self, logits, x):
        return logits.mean(0, keepdim=True)


REFUSED = {
    Dict: r"answers float32 inputs of shape \(3, 8, 8\) on cpu with a dict of 'out', 'aux'; it has to answer with one tensor",
    Tuple: r"with a tuple of 2 parts; it has to answer with one tensor, a row an example: wrap it",
    Sized: r"does not take float32 inputs .*: AssertionError: Input height \(8\) doesn't match model \(16\)\. \(test_teachers_as",
    Raises: r"does not take float32 inputs .*: KeyError: 'scale' \(test_teachers_as_they_come\.py:\d+\); give other data, or",
    Fixed: r"does not take float32 inputs .*: RuntimeError: shape '\[2, -1\]' is invalid",
    OneRow: r"answers 2 float32 inputs .* with a tensor of shape \(1, 3\); it has to have a row an example",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_teacher_that_does_not_run_here_is_refused_alike_everywhere(kind):
    teacher, told = kind().eval(), REFUSED[kind]
    with pytest.raises(UserError, match=told) as first:
        inspect(teacher, SHAPE)
    with pytest.raises(UserError, match=told) as second:
        compress_env.compress(teacher, pair(), evaluations=1, progress=False)
    with pytest.raises(UserError, match=told):
        gym.make("LayerRemoval-v0", teacher=teacher, data=pair())
    assert str(first.value) == str(second.value) and f"teacher {kind.__name__!r}" in str(first.value)


def test_values_that_are_not_finite_are_refused_on_data_and_allowed_on_zeros():
    class Unit(Net):
        def forward(self, x):
            return super().forward(x / x.flatten(1).norm(dim=1)[:, None, None, None])

    assert inspect(Unit().eval(), SHAPE).layers == 3  # zeros have no direction
    nothing = tuple(TensorDataset(torch.zeros(60, *SHAPE), torch.arange(60) % 3) for _ in range(2))
    with pytest.raises(UserError, match="values that are NaN or infinite; look at its weights, and at how inputs are normalised"):
        Problem.build(ProblemSpec(Unit().eval(), data=nothing))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b, self.head = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean(1))


def test_numbers_of_words_are_inputs_with_data_without_it_and_when_a_run_is_gone_on_with():
    generator = torch.Generator().manual_seed(0)
    words = tuple(TensorDataset(torch.randint(20, (n, 6), generator=generator), torch.arange(n) % 3) for n in (60, 30))
    teacher = Words().eval()
    problem = Problem.build(ProblemSpec(teacher, data=words))
    assert inspect(teacher, (6,)).usage == inspect(teacher, data=words).usage == problem.cost_model.teacher
    again = Problem.build(ProblemSpec(teacher, data=words), measured=Measured.from_json(problem.measured.to_json()))
    assert again.example(2).dtype == torch.int64 and again.cost_model.teacher == problem.cost_model.teacher
    assert again.id == problem.id


def test_a_teacher_that_mixed_precision_breaks_is_computed_in_float32(monkeypatch):
    class Strict(Net):
        def answer(self, logits, x):  # both have to be of one type
            return torch.zeros_like(logits, dtype=torch.float32).lerp(logits, 1.0)

    monkeypatch.setattr("compress_env.devices.bfloat16_pays", lambda *_: True)
    assert Problem.build(ProblemSpec(Net().eval(), data=pair())).bfloat16
    problem = Problem.build(ProblemSpec(Strict().eval(), data=pair()))
    assert not problem.bfloat16
    assert problem.runnable(Recipe(precision="bfloat16")).precision == "float32"
    env = gym.make("LayerRemoval-v0", teacher=Strict().eval(), data=pair(), budget={"macs": 0.9})
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step(env.action_space.sample() * 0)
    assert not info["failed"]


def invoke(*arguments) -> Result:
    arguments = [str(a) for a in arguments]
    with mock.patch.object(sys, "argv", ["compress-env", *arguments]):
        return CliRunner().invoke(main, arguments, prog_name="compress-env")


def command(*arguments) -> str:
    """The last line of a command that is refused."""
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output[-500:]
    return result.output.splitlines()[-1]


# Data as they come


class Listed(Dataset):
    """Examples of any kind; the one at `broken` cannot be read."""

    def __init__(self, labels, make=lambda i: torch.full(SHAPE, float(i)), broken=-1):
        self.labels, self.make, self.broken = labels, make, broken

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        if i == self.broken:
            raise OSError("torn record")
        return self.make(i), self.labels[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Listed([0, 1, 2]))


def picture(mode: str, i: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), i, np.uint8)).convert(mode)


CLASSES = [i % 3 for i in range(60)]
GOOD = Listed(CLASSES)
DATA = {
    "a DataLoader": (DataLoader(GOOD), "the training data is a DataLoader; give the dataset that it reads, its .dataset"),
    "a stream": (Stream(), r"is a Stream, of which no example can be asked for by its number; .* such as list\(dataset\)"),
    "a generator": ((x for x in GOOD), "is a generator, of which no example"),
    "a tensor": (torch.zeros(60, 3, 8, 8), r"is a tensor; give torch.utils.data.TensorDataset\(inputs, labels\)"),
    "dicts": ([{"image": torch.zeros(SHAPE), "label": 0}] * 60, "example 0 of the .* is a dict of 'image', 'label'; give pairs"),
    "no labels": ([torch.zeros(SHAPE)] * 60, "example 0 of the training data is a Tensor without a label; give pairs"),
    "texts": (Listed(["cat", "dog"] * 30), "the label of example 0 of the training data is the text 'cat'; number such texts from 0"),
    "None": (Listed([0, None] * 30), "the label of example 1 of the training data is a NoneType"),
    "a bad example": (Listed(CLASSES, broken=37), "example 37 of the training data cannot be read: OSError: torn record"),
    "16 bits": (Listed(CLASSES, lambda i: picture("I", i)), "example 0 of the .* is an image of mode I, with more than 8"),
    "a regression": (Listed([i / 60 for i in range(60)]), "labels of type torch.float32, .* another task for a regression"),
    "a regression in a column": (Listed([[i / 60] for i in range(60)]), r"labels of shape \(1,\) and type torch.float32, for ex"),
    "one-hot labels": (Listed([[int(j == c) for j in range(3)] for c in CLASSES]), r"labels of shape \(3,\).*with \.argmax\(\)"),
    "too many classes": (Listed([i % 4 for i in range(60)]), r"answers with \(3,\), .* has 4 classes; leave out"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_data_of_another_kind_are_refused_with_the_cure_before_any_work(kind, monkeypatch):
    monkeypatch.setattr("compress_env.running.trace", lambda *_, **__: pytest.fail("too late"))
    dataset, told = DATA[kind]
    with pytest.raises(UserError, match=told):
        gym.make("LayerRemoval-v0", teacher=Net().eval(), data=(dataset, GOOD))


def test_one_output_is_no_classification():
    with pytest.raises(UserError, match="a network of one output is for another task, such as a regression: give one of your own"):
        Problem.build(ProblemSpec(Net(1).eval(), data=(Listed([0] * 60), Listed([0] * 30))))
    with pytest.raises(UserError, match="got DataLoader; of DataLoaders, give the two .dataset"):
        Problem.build(ProblemSpec(Net().eval(), data=DataLoader(GOOD)))


@pytest.mark.parametrize("mode, channels, value", [("RGB", 3, 7), ("RGBA", 3, 7), ("L", 1, 7), ("1", 1, 0)])
def test_pictures_of_pillow_are_pixels(mode, channels, value):
    data = load_data((Listed(CLASSES, lambda i: picture(mode, 7)), Listed(CLASSES, lambda i: picture(mode, 7))))
    assert data.input_shape == (channels, 8, 8) and data.train.inputs.dtype == torch.uint8
    assert data.train.inputs.unique().tolist() == [value]


def test_labels_need_not_cover_a_teachers_classes():
    few = tuple(Listed([i % 3 * 400 for i in range(n)]) for n in (60, 30))
    problem = Problem.build(ProblemSpec(Net(1000).eval(), data=few))
    assert problem.data.outputs == 801  # one more than the largest label
    assert Problem.build(ProblemSpec(Net(1000).eval(), data=few, classes=1000)).data.outputs == 1000
    with pytest.raises(UserError, match=r"answers with \(1000,\), .* has 900 classes; if labels are the numbers of the"):
        Problem.build(ProblemSpec(Net(1000).eval(), data=few, classes=900))
    with pytest.raises(UserError, match="has 801 classes, more than classes=800"):
        Problem.build(ProblemSpec(Net(1000).eval(), data=few, classes=800))


def test_data_that_name_their_classes_need_a_teacher_of_as_many_unless_it_is_said(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12))\n"
    )
    given = ("--teacher", f"{tmp_path / 'own.py'}:net", "--data", "digits", "--agent", "uniform", "--evaluations", 1)
    rest = (*given, "--finetune-epochs", 0, "--out", tmp_path / "a")
    assert "answers with (12,), but the data set 'digits' has 10 classes; if labels are" in command("search", *rest)
    assert invoke("search", *rest, "--classes", 12).exit_code == 0


# Attributes that cannot be copied


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.part = nn.Sequential(nn.Identity())
        self.part[0].lock = threading.Lock()


class Lazily(Locked):
    """Its copies make a lock of their own."""

    def __deepcopy__(self, memo):
        return Net()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_an_attribute_that_cannot_be_copied_is_named_with_what_to_do(role):
    told = r"the {} 'net' cannot be copied.*its part.0.lock \(lock\) does not let it \(TypeError: cannot pickle.*; delete that"
    with pytest.raises(UserError, match=told.format(role)):
        admitted(Locked().eval(), "net", role=role)
    net = Net().eval()
    net.rows = (i for i in range(3))
    with pytest.raises(UserError, match=r"the teacher 'Net' cannot be copied.*: its rows \(generator\) does not let it"):
        load_teacher(net)
    own = Lazily().eval()
    assert admitted(own, "net") is own
    with pytest.raises(UserError, match=r"cannot be copied.*: its part.0.lock"):
        gym.make("LayerRemoval-v0", teacher=Locked().eval(), data=(numbers(60, 3), numbers(30, 3)))


def test_what_is_tried_holds_no_second_copy_of_the_weights(monkeypatch):
    net, copied = Net().eval(), []
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self) or self)
    assert admitted(net, "net") is net and not copied


# Teachers that do not belong to their data


class Knows(nn.Module):
    """It says the class that an input of one number has, in some order of its outputs."""

    def __init__(self, order, sharp=9.0):
        super().__init__()
        self.a, self.b = nn.Linear(1, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, len(order))
        centres = torch.arange(len(order), dtype=torch.float32)
        with torch.no_grad():
            for layer in (self.a, self.b, self.head):
                layer.bias.zero_()
                layer.weight.zero_()
            self.a.weight[0], self.b.weight[0, 0] = 1.0, 1.0
            self.head.weight[:, 0] = 2 * sharp * centres[list(order)]
            self.head.bias.copy_(-sharp * centres[list(order)] ** 2)

    def forward(self, x):
        x = self.a(x).relu()
        x = x + self.b(x).relu() - x
        return self.head(x)


def numbers(n: int, classes: int):
    labels = torch.arange(n) % classes
    return TensorDataset(labels.float().view(n, 1), labels)


def told(teacher, classes: int = 12, **settings) -> list[str]:
    """The warnings about a teacher when its environment is made."""
    data = (numbers(2400, classes), numbers(60, classes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gym.make("LayerRemoval-v0", teacher=teacher.eval(), data=data, budget={"macs": 0.9}, **settings)
    return [str(w.message) for w in caught if w.category is DoubtfulTeacher]


def test_a_good_teacher_is_not_doubted():
    assert told(Knows(range(12))) == []


def test_a_teacher_at_chance_is_doubted_with_what_to_check():
    constant = Knows(range(12))
    with torch.no_grad():
        constant.head.weight.zero_()
    (text,) = told(constant)
    assert "on 120 validation examples, which is not clearly better than chance (" in text
    assert "Check its weights (--weights), the order of its outputs, and the mean and deviation" in text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert "not clearly better than chance" in told(Knows(range(12), sharp=0.0))[0]


def test_another_order_of_classes_is_found():
    names = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2: as folders are listed
    (text,) = told(Knows([int(name) for name in names]))
    assert "would have 100% if the classes were in another order (label 2 is its output 4, 3 is its output 5" in text


def test_a_teacher_that_is_never_right_is_searched_to_the_end_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("compress_env.finishing.export_all", lambda *_, **__: {})
    never = Knows([1, 0, 2])
    data = tuple(TensorDataset((1 - x).clamp(0), y) for x, y in (numbers(600, 2).tensors, numbers(60, 2).tensors))
    never.head.bias.data[2] = 1e6  # a class that no label has
    with pytest.warns(DoubtfulTeacher):
        done = compress_env.compress(
            never.eval(), data, {"macs": 0.9}, agent="random", evaluations=2, finetune_epochs=1, out=tmp_path / "a", progress=True
        )
    assert done.result.teacher.metric_test == 0.0 and (tmp_path / "a" / "report.html").is_file()
    assert "Knows: accuracy 0.0% on 30 validation examples" in capsys.readouterr().err.splitlines()
    with pytest.warns(DoubtfulTeacher), pytest.raises(UserError, match=r"reward 'n2n' raised ZeroDivisionError \(.*division by zero"):
        gym.make("LayerRemoval-v0", teacher=never, data=data, reward="n2n")


@pytest.mark.parametrize("reward, told", [
    (lambda *_: None, r"raised TypeError \(.*NoneType.*it has to give a number, or a dict of them"),
    (lambda *_: {}["score"], r"raised KeyError \('score'\)"),
    (lambda *_: float("nan"), "it has to be finite"),
])  # fmt: skip
def test_a_reward_that_gives_none_or_raises_is_named_before_any_student_is_judged(reward, told, monkeypatch):
    monkeypatch.setattr("compress_env.evaluator.Evaluator.__call__", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=rf"reward '<lambda>' .*{told}"):
        gym.make("LayerRemoval-v0", reward=reward)


# Sentences for what people type


@pytest.mark.parametrize("settings, told", [
    ({"agent": "stable_baselines3:DQN"}, r"DQN needs discrete actions, .* continuous actions, such as stable_baselines3:SAC"),
    ({"agent": "sb3_contrib:QRDQN"}, "QRDQN needs discrete actions"),
    ({"budget": {"macs": 50}}, r"macs of 50 MACs .* the smallest reachable is 1,\d{3} \(0\.\d%\); did you mean 50%\?"),
    ({"budget": {"params": 0.0001}}, r"the smallest reachable is [\d,]+ \(\d+\.\d%\)$"),
    ({"budget": 0.5}, 'a budget is a mapping such as {"macs": 0.5}, got 0.5'),
    ({"finetune_epochs": -1}, "finetune_epochs has to be a whole number, 0 for no fine-tuning, got -1"),
    ({"finetune_epochs": 1.5}, "0 for no fine-tuning, got 1.5"),
    ({"weights": {"a": 1}}, "weights have to be a file's path, got dict; load them into the teacher"),
])  # fmt: skip
def test_what_people_type_is_answered_with_what_they_meant(settings, told):
    with pytest.raises(UserError, match=told):
        compress_env.compress(evaluations=1, progress=False, **settings)


def test_a_budget_of_one_episode_gets_the_same_sentence(digits_env):
    with pytest.raises(UserError, match='a budget is a mapping such as {"macs": 0.5}, got 0.5'):
        digits_env.reset(options={"budget": 0.5})


def test_no_fine_tuning_leaves_the_student_as_it_was_judged(tmp_path):
    found = compress_env.compress(agent="uniform", evaluations=1, finetune_epochs=0, out=tmp_path / "a", progress=False)
    data = load_data("digits")
    assert Classification().metrics(predict(found.student, data, data.validation), data.validation.labels) == found.evaluation.metrics
    assert found.report().is_file() and not (tmp_path / "a" / "result.json").exists()
    with pytest.raises(UserError, match=r"not distilled \(finetune_epochs=0\); compress-env finetune --out .*a does that"):
        found.result  # noqa: B018


# Validation of one's own, and pictures in grey


@pytest.fixture
def photos(tmp_path):
    """Images of 8x8 pixels of the classes 0 to 2, whose red, green and blue tell the part that they are in."""
    for part, count, value in (("train", 20, 10), ("test", 6, 100), ("val", 8, 200)):
        for name in "abc":
            place = tmp_path / "photos" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), (value, value + 5, i), np.uint8)).save(place / f"{i}.png")
    return tmp_path / "photos"


def parts(data) -> list[tuple[int, set[int]]]:
    return [(len(s), set(s.inputs[:, 0].flatten().tolist())) for s in (data.train, data.validation, data.test)]


def test_a_folder_beside_the_others_is_what_students_are_judged_on(photos):
    spec = ProblemSpec(Net().eval(), data=f"imagefolder:{photos}")
    data = Problem.build(spec).data
    assert parts(data) == [(60, {10}), (24, {200}), (18, {100})]
    assert data.validation.labels[:8].tolist() != [0] * 8  # in no order, since a search sees the first half
    (photos / "val").rename(photos.parent / "mine")
    assert parts(load_data(f"imagefolder:{photos}")) == [(54, {10}), (6, {10}), (18, {100})]
    for place in (photos.parent / "mine", f"imagefolder:{photos.parent / 'mine'}"):
        assert parts(load_data(f"imagefolder:{photos}", validation=place)) == [(60, {10}), (24, {200}), (18, {100})]


@pytest.mark.parametrize("data, validation, told", [
    ("imagefolder:photos", "gone", "validation: gone is no folder; give one with images as those in imagefolder:DIR/train"),
    ("imagefolder:photos", "photos", r"train and photos have different class folders, for example \['a', 'b', 'c'\]"),
    ("digits", "photos/val", "the data set 'digits' has its own validation examples; validation is for imagefolder:DIR"),
])  # fmt: skip
def test_a_validation_folder_that_does_not_fit_is_refused(photos, monkeypatch, data, validation, told):
    monkeypatch.chdir(photos.parent)
    with pytest.raises(UserError, match=told):
        load_data(data, validation=validation)


def test_a_third_dataset_is_what_students_are_judged_on():
    train, test = numbers(60, 3), numbers(30, 3)
    data = load_data((train, test), validation=TensorDataset(torch.full((9, 1), 7.0), torch.arange(9) % 3))
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 9, 30)
    assert data.validation.inputs.unique().tolist() == [7.0]
    with pytest.raises(UserError, match="the validation data is a DataLoader"):
        load_data((train, test), validation=DataLoader(test))
    with pytest.raises(UserError, match="give a dataset as"):
        load_data((train, test), validation="photos")


@pytest.mark.parametrize("validation, test, tests, known", [
    (1.0, 0.85, 400, True), (0.9, 0.85, 400, False), (1.0, 1.0, 400, False), (0.8, 0.9, 400, False), (1.0, 0.85, 10, False),
])  # fmt: skip
def test_a_teacher_that_knows_its_validation_examples_is_told_by_the_interval(validation, test, tests, known):
    found = trained_on(Classification(), validation, test, 100, tests)
    assert bool(found) == known and ("give others to choose on (--validation)" in found) == known


def test_a_search_warns_of_a_teacher_that_was_trained_on_what_becomes_validation(tmp_path, monkeypatch):
    monkeypatch.setattr("compress_env.finishing.export_all", lambda *_, **__: {})
    x, y = numbers(600, 2).tensors
    test = TensorDataset(*(t.clone() for t in (x[:300], y[:300])))
    test.tensors[0][:100] = 1 - test.tensors[0][:100]  # a third is wrong on test
    with pytest.warns(DoubtfulTeacher, match=r"'Knows' has accuracy 100.0% on 60 validation examples, but 66.7% on 300 test examples"):
        compress_env.compress(
            Knows([0, 1]).eval(), (TensorDataset(x, y), test), {"macs": 0.9}, "random", 1, out=tmp_path / "a", finetune_epochs=1,
            progress=False,
        )  # fmt: skip


class Grey(Net):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)


def test_pictures_are_read_with_as_many_channels_as_the_teacher_takes(photos, capsys):
    grey = Problem.build(ProblemSpec(Grey().eval(), data=f"imagefolder:{photos}"), progress=True).data
    assert grey.input_shape == (1, 8, 8) and len(grey.normalization[0]) == 1
    expected = np.asarray(Image.open(photos / "test/a/3.png").convert("L"))
    assert any(np.array_equal(x[0].numpy(), expected) for x in grey.test.inputs)
    assert "pictures are read in grey, as the teacher 'Grey' takes inputs of 1 channels" in capsys.readouterr().err
    assert load_data(f"imagefolder:{photos}").input_shape == (3, 8, 8)  # kept apart from grey ones on disk
    given = ProblemSpec(Grey().eval(), data=f"imagefolder:{photos}", mean=(0.5,), std=(0.25,))
    assert Problem.build(given).data.normalization == ((0.5,), (0.25,))
    pictures = tuple(Listed(CLASSES, lambda i: picture("L", i)) for _ in range(2))
    assert Problem.build(ProblemSpec(Net().eval(), data=pictures)).input_shape == (3, 8, 8)
    assert Problem.build(ProblemSpec(Grey().eval(), data=pictures)).input_shape == (1, 8, 8)
