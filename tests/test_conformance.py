"""Every registered part passes its conformance suite; and each suite refuses parts that break a promise, saying which."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention

from compress_env import testing
from compress_env.data import load_data
from compress_env.registry import Registry, load_attribute
from compress_env.resources import RESOURCES
from compress_env.resources.base import MeasuredResource, Measurement, Resource
from compress_env.resources.macs import Macs
from compress_env.resources.params import Params
from compress_env.rewards import REWARDS
from compress_env.surgery.ranking import RANKINGS, Ranking, magnitude
from compress_env.surgery.rules import Rule, register_rule
from compress_env.surgery.rules.normalisation import PerChannel
from compress_env.tasks import TASKS
from compress_env.tasks.classification import Classification
from compress_env.teachers import TEACHERS
from compress_env.testing import networks
from compress_env.testing.loss import example_outputs

IMAGES, VOLUMES, SERIES = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 4, 4, 4), torch.randn(2, 8, 10)
TOKENS, VECTORS = torch.randn(2, 5, 8), torch.randn(2, 8)
LAYERS = {  # family: layers with their input
    "dense": [
        (nn.Linear(8, 6), VECTORS),
        (nn.Linear(8, 6), TOKENS),
        (nn.Conv1d(8, 6, 3), SERIES),
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), IMAGES),
        (nn.Conv2d(8, 16, 3, groups=8), IMAGES),
        (nn.Conv2d(8, 16, 3, groups=2), IMAGES),
        (nn.Conv3d(8, 6, 3), VOLUMES),
    ],
    "normalisation": [
        (nn.BatchNorm2d(8), IMAGES),
        (nn.InstanceNorm2d(8, affine=True), IMAGES),
        (nn.GroupNorm(4, 8), IMAGES),
        (nn.PReLU(8), IMAGES),
    ],
    "elementwise": [(nn.Identity(), IMAGES), (nn.GELU(), IMAGES), (nn.Dropout(), VECTORS)],
    "moving": [(nn.Flatten(), IMAGES), (nn.PixelShuffle(2), IMAGES)],
    "pooling": [(nn.MaxPool2d(2), IMAGES), (nn.ZeroPad2d(1), IMAGES), (nn.Upsample(scale_factor=2), IMAGES)],
}


def example(file: str, attribute: str) -> str:
    """The place of a part in a file of examples/."""
    return f"{Path(__file__).parent.parent}/examples/{file}.py:{attribute}"


def refuses(sentence: str):
    """A context in which a suite has to refuse a part with this sentence."""
    return pytest.raises(AssertionError, match=sentence)


@pytest.mark.parametrize("name", TEACHERS.names())
def test_shipped_teachers_conform(name):
    testing.check_teacher(name, networks.shipped(name)[1])


def test_a_teacher_that_fits_its_data_conforms():
    testing.check_teacher("resnet8-digits", load_data("digits"), plans=1)


@pytest.mark.parametrize("name", RESOURCES.names())
def test_registered_resources_conform(name):
    small = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 4))
    testing.check_resource(name, small.eval(), IMAGES)
    if not RESOURCES.get(name).measured:
        testing.check_resource(name)


@pytest.mark.parametrize("name", REWARDS.names())
def test_registered_rewards_conform(name):
    testing.check_reward(name)


@pytest.mark.parametrize("name", RANKINGS.names())
def test_registered_rankings_conform(name):
    testing.check_ranking(name)


@pytest.mark.parametrize("name", TASKS.names())
def test_registered_tasks_and_their_losses_conform(name):
    testing.check_task(name, *example_outputs())


def named(value) -> str:
    """The id of a parameter: random numbers of a tensor are none."""
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


@pytest.mark.parametrize("layer, example", [pair for own in LAYERS.values() for pair in own], ids=named)
def test_rules_of_layers_conform(layer, example):
    testing.check_rule(layer.eval(), example)


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.RMSNorm(8)], ids=named)
def test_rules_of_layers_that_normalise_over_channels_conform(layer):
    testing.check_rule(layer.eval(), TOKENS, axis=-1, zeros=False)


def test_rules_of_attention_conform():
    def attend(layer, x):
        return layer(x, x, x, need_weights=False)[0]

    testing.check_rule(nn.MultiheadAttention(8, 4, batch_first=True).eval(), TOKENS, call=attend, axis=-1)
    testing.check_rule(nn.GRU(8, 6, 2, bidirectional=True).eval(), TOKENS, call=lambda layer, x: layer(x)[0])
    windows = ShiftedWindowAttention(8, window_size=[2, 2], shift_size=[1, 1], num_heads=4).eval()
    testing.check_rule(windows, torch.randn(2, 4, 4, 8), axis=-1)


def test_parts_of_the_examples_conform():
    testing.check_resource(example("my_resource", "Energy"))
    testing.check_reward(example("my_reward", "mnasnet"))
    testing.check_reward(example("my_reward", "itemised"))
    testing.check_loss(load_attribute(example("my_loss", "reverse_kl"), "loss"))
    testing.check_task(example("my_task", "Regression"), torch.randn(16, 2), torch.randn(16, 2))
    testing.check_teacher(example("my_teacher", "Net"), torch.randn(2, 3, 8, 8))
    layer, rule = (load_attribute(example("my_layer", name), "layer") for name in ("GatedLinear", "GatedLinearRule"))
    register_rule(layer)(rule)
    testing.check_rule(layer(8, 6).eval(), TOKENS)


class Thrice(Macs):
    """Counts more than it predicts."""

    def count(self, student, example):
        return 3 * super().count(student, example)


class Cheaper(Resource):
    """More channels cost less."""

    unit = "EUR"

    def predict(self, view, widths):
        return 1e9 / (1 + view.parameters(widths))

    def count(self, student, example):
        return 1e9 / (1 + sum(p.numel() for p in student.parameters()))


class OneByOne(Params):
    """Says that it takes columns, and takes one at a time."""

    def predict(self, view, widths):
        return float(np.sum(super().predict(view, widths)))


class Wild(MeasuredResource):
    """A measurement that is another number each time, and is not remembered."""

    unit = "J"

    def prepare(self, context):
        whole = context.graph.view(frozenset()).parameters(context.graph.full)
        rng = np.random.default_rng(0)

        class Drawn(Measurement):
            def predict(self, view, widths):
                return float(view.parameters(widths))

            def run(self, student):
                return rng.random()

            def measure(self, student, plan, times=1):
                return self.run(student)

        return Drawn(float(whole))


def test_a_resource_that_breaks_a_promise_is_refused():
    with refuses(r"Thrice.*predict says \d+.* and count finds \d+"):
        testing.check_resource(Thrice)
    with refuses(r"Cheaper.*without the block|Cheaper.*for more channels"):
        testing.check_resource(Cheaper())
    with refuses("OneByOne.*not vectorised"):
        testing.check_resource(OneByOne)
    with refuses("Wild.*the same plan measures 0.[0-9]+ first and 0.[0-9]+ then"):
        testing.check_resource(Wild)
    with refuses("derives neither from"):
        testing.check_resource(object())
    with refuses("no resource 'mcas'; did you mean 'macs'"):
        testing.check_resource("mcas")


def test_a_reward_that_breaks_a_promise_is_refused():
    with refuses("falls from .* when the metric rises from 0.0 to 0.1"):
        testing.check_reward(lambda evaluation, limits: -evaluation.metric)
    with refuses("rises from .* needs twice the MACs"):
        testing.check_reward(lambda evaluation, limits: evaluation.metric * evaluation.usage["macs"])
    with refuses("not finite"):
        testing.check_reward(lambda evaluation, limits: float("inf") * (evaluation.metric + 1))
    with refuses("AttributeError.*update"):
        testing.check_reward(lambda evaluation, limits: evaluation.usage.update(macs=0) or 0.0)
    with refuses("unsupported operand|raised TypeError"):  # a divergence that was not measured
        testing.check_reward(lambda evaluation, limits: -evaluation.kl)
    drawn = iter(range(10**6))
    with refuses("first and .* then"):
        testing.check_reward(lambda evaluation, limits: next(drawn))


def test_a_ranking_that_breaks_a_promise_is_refused():
    def ranker(change):
        def rank(teacher, graph, inputs):
            return change(magnitude.rank(teacher, graph, inputs), teacher)

        return SimpleNamespace(NEEDS_INPUTS=False, rank=rank, name="mine")

    def twice(ranking, teacher):
        return dataclasses.replace(ranking, orders={name: order // 2 for name, order in ranking.orders.items()})

    rng = np.random.default_rng(0)

    def drawn(ranking, teacher):
        return dataclasses.replace(ranking, orders={name: rng.permutation(order) for name, order in ranking.orders.items()})

    def destructive(ranking, teacher):
        next(teacher.parameters()).data.zero_()
        return ranking

    testing.check_ranking(ranker(lambda ranking, teacher: ranking))
    with refuses("'mine' does not name each channel"):
        testing.check_ranking(ranker(twice))
    with refuses("'mine' gives another order the second time"):
        testing.check_ranking(ranker(drawn))
    with refuses("'mine': rank changes the network"):
        testing.check_ranking(ranker(destructive))
    with refuses("'mine' orders 'nowhere'"):
        testing.check_ranking(ranker(lambda ranking, teacher: Ranking("mine", {"nowhere": np.arange(3)})))


def test_a_task_that_breaks_a_promise_is_refused():
    class Mine(Classification):
        pass

    def changed(**members):
        return type("Mine", (Mine,), members)

    outputs, labels = example_outputs()
    with refuses("'accuracy' has to come first"):
        testing.check_task(changed(metrics=lambda self, x, y: {"error": 0.1, "accuracy": 0.9}), outputs, labels)
    with refuses("no float"):
        testing.check_task(changed(metrics=lambda self, x, y: {"accuracy": (x.argmax(1) == y).sum()}), outputs, labels)
    with refuses("in another order"):
        testing.check_task(changed(metrics=lambda self, x, y: {"accuracy": float(x[0, 0])}), outputs, labels)
    with refuses("divergence of equal outputs is"):
        testing.check_task(changed(divergence=lambda self, x, y: float(x.abs().sum())), outputs, labels)
    with refuses("it has to be above 0"):
        testing.check_task(changed(divergence=lambda self, x, y: float((y - x).sum()) - 1e9 * (x is not y)), outputs, labels)
    with refuses("agreement of equal outputs is 0.5"):
        testing.check_task(changed(agreement=lambda self, x, y: 0.5), outputs, labels)
    with refuses("distils with the loss 'mine', which it does not have"):
        testing.check_task(changed(loss="mine"), outputs, labels)
    losses = Registry("loss")
    losses.register("hinton")(lambda student, teacher, labels, temperature: (student - teacher).square().sum(1))
    with refuses(r"loss 'hinton'.*\(16,\) instead of a scalar"):
        testing.check_task(changed(losses=losses), outputs, labels)


def test_a_loss_that_breaks_a_promise_is_refused():
    with refuses("gradient that is not finite|not finite"):  # as exp overflows where outputs are certain
        testing.check_loss(lambda s, t, labels, temperature: (s.exp() - t.exp()).square().mean())
    with refuses("cannot be differentiated"):
        testing.check_loss(lambda s, t, labels, temperature: (s - t).detach().square().mean())
    with refuses("gradient of 0"):
        testing.check_loss(lambda s, t, labels, temperature: 0 * F.cross_entropy(s, labels))
    with refuses("changes what it is given"):
        testing.check_loss(lambda s, t, labels, temperature: (s - t.mul_(2)).square().mean())


class Gain(nn.Module):
    """A factor for each channel and an offset, of a type that nothing is known of."""

    def __init__(self):
        super().__init__()
        self.num_features = 8
        self.gain = nn.Parameter(torch.arange(1.0, 9.0))
        self.offset = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x * self.gain.view(-1, 1, 1) + self.offset


def gain(rule: type[Rule] | None):
    """A layer of a new type with this rule."""
    kind = type("Gain", (Gain,), {})
    if rule is not None:
        register_rule(kind)(rule)
    return kind().eval()


def test_a_rule_that_breaks_a_promise_is_refused():
    class Forgets(PerChannel):
        """Says nothing about the axes of its parameter, which stays as long as it was."""

        def axes(self, module, name, value):
            return ()

    class Mistakes(PerChannel):
        """Keeps the first channels instead of those that stay."""

        def sliced(self, module, masks):
            return super().sliced(module, {side: np.sort(mask)[::-1].copy() for side, mask in masks.items()})

    class Shares(PerChannel):
        """Gives students the teacher's own parameter."""

        def sliced(self, module, masks):
            new = super().sliced(module, masks)
            new.offset = module.offset
            return new

    class Shy(PerChannel):
        """Names a side that it never notes."""

        sides = ("out", "heads")

    testing.check_rule(gain(PerChannel), IMAGES)
    with refuses("nothing shrinks.*does not run"):
        testing.check_rule(gain(Forgets), IMAGES)
    with refuses("computes something else than the network whose other channels are 0"):
        testing.check_rule(gain(Mistakes), IMAGES)
    with refuses("shares storage"):
        testing.check_rule(gain(Shares), IMAGES)
    with refuses("its side 'heads' never shrinks"):
        testing.check_rule(gain(Shy), IMAGES)
    with refuses("Bilinear.*no rule for shrinking"):
        testing.check_rule(nn.Bilinear(8, 8, 6).eval(), TOKENS, call=lambda layer, x: layer(x, x), axis=-1)


def test_a_teacher_that_breaks_a_promise_is_refused():
    class Restless(nn.Sequential):
        def forward(self, x):
            self[0].weight.data.mul_(1.5)
            return super().forward(x)

    layers = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    testing.check_teacher(nn.Sequential(*layers).eval(), VECTORS)
    with refuses("training mode"):
        testing.check_teacher(nn.Sequential(*layers), VECTORS)
    with refuses("other outputs for the same inputs"):
        testing.check_teacher(Restless(*layers).eval(), VECTORS)
    with refuses("returns a tuple"):
        testing.check_teacher(nn.LSTM(8, 3).eval(), TOKENS)
    with refuses("no block to remove and no group to shrink"):
        testing.check_teacher(nn.Sequential(nn.Linear(8, 3)).eval(), VECTORS)
    with refuses("answers with .*, but the data set 'digits' has 10 classes"):
        testing.check_teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3)).eval(), load_data("digits"))
