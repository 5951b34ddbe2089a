"""Layer rules: types of layers are told apart in their files alone, and whatever is registered shrinks."""

from __future__ import annotations

import ast
import copy
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from networks import random_plan
from torch import nn
from torchvision.models import swin_transformer

from compress_env.export import export_onnx
from compress_env.resources import RESOURCES
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.ranking import reconstruction
from compress_env.surgery.refit import Refit
from compress_env.surgery.rules import Rule, register_rule, registry, rule_of
from compress_env.surgery.rules.head_attention import HeadAttention
from compress_env.surgery.trace import trace

ROOT = Path(__file__).parent.parent


def _of_layers(tree: ast.AST) -> list[int]:
    """Lines of `isinstance` calls that ask for types of layers: anything of `nn` but modules and parameters as such."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            asked = [ast.unparse(n) for n in ast.walk(node.args[1]) if isinstance(n, (ast.Attribute, ast.Name))]
            own = [n for n in asked if n.startswith("nn.") and n not in ("nn.Module", "nn.Parameter")]
            found += [node.lineno] if own or any(n.isupper() for n in asked) else []
    return found


def test_types_of_layers_are_told_apart_by_rules_alone():
    assert _of_layers(ast.parse("isinstance(m, nn.Conv2d) or isinstance(m, (A, DENSE)) or isinstance(m, nn.Module)"))
    files = [p for room in ("surgery", "distill", "resources") for p in (ROOT / "compress_env" / room).rglob("*.py")]
    outside = [p for p in files if p.parent.name != "rules"]
    assert len(outside) > 20
    assert {str(p): lines for p in outside if (lines := _of_layers(ast.parse(p.read_text())))} == {}


def test_no_file_of_surgery_imports_one_that_imports_it():
    files = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "compress_env/surgery").rglob("*.py")}
    names = {name.removesuffix(".__init__"): name.removesuffix(".__init__") for name in files.values()}
    needs = {}
    for path, name in files.items():
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
        found = {n.module for n in nodes} | {f"{n.module}.{a.name}" for n in nodes for a in n.names}
        needs[name.removesuffix(".__init__")] = {f for f in found if f in names}
    for package in ("compress_env.surgery.rules", "compress_env.surgery.ranking"):  # a package only gathers its files
        for own in needs.values():
            own.discard(package)
    assert len(needs["compress_env.surgery.trace"]) > 8
    TopologicalSorter(needs).prepare()  # raises CycleError


def test_the_nearest_base_class_of_a_layer_decides():
    class Mine(nn.Conv2d):
        pass

    class Older(Mine):
        pass

    assert rule_of(Older(1, 1, 1)) is rule_of(nn.Conv2d(1, 1, 1)) and rule_of(nn.ReLU6()).elementwise
    assert not rule_of(nn.Module()).sides and not rule_of(None).leaf

    class Own(Rule):
        """Nothing is known."""

    register_rule(Mine)(Own)
    try:
        assert isinstance(rule_of(Older(1, 1, 1)), Own) and not isinstance(rule_of(nn.Conv2d(1, 1, 1)), Own)
    finally:
        del registry._RULES[Mine]
        registry._FOUND.clear()


def test_the_examples_layer_shrinks_by_its_rule():
    spec = importlib.util.spec_from_file_location("my_layer", ROOT / "examples" / "my_layer.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(0)
    teacher, x = nn.Sequential(example.GatedLinear(9, 12), nn.Linear(12, 3)).eval(), torch.randn(6, 9)
    assert not trace(teacher, x).groups
    register_rule(example.GatedLinear)(example.GatedLinearRule)
    graph = trace(teacher, x)
    assert list(graph.groups) == ["0"]
    dropped = ~graph.groups["0"].kept(5)
    with torch.no_grad():
        teacher[1].weight[:, torch.from_numpy(dropped)] = 0
        student = build_student(teacher, graph, Plan.of((), {"0": 5}))
        assert student.get_submodule("0").gate.shape == (5, 9)
        torch.testing.assert_close(student(x), teacher(x))
    size = example.GatedLinear(9, 12).value.detach()
    scores = rule_of(teacher[0]).scores(teacher[0], "out")
    expected = (teacher[0].value.detach().square() + teacher[0].gate.detach().square()).sum(1)
    assert size.shape == (12, 9) and scores == pytest.approx(expected.double().numpy())


class Tokens(nn.Module):
    """A transformer block with PyTorch's attention, called in the ways that people call it."""

    def __init__(self, width=24, heads=4, context=None, need_weights=False, masked=False, **settings):
        super().__init__()
        self.embed, self.context = nn.Linear(5, width), context and nn.Linear(5, context)
        self.attention = nn.MultiheadAttention(width, heads, kdim=context, vdim=context, **settings)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)
        self.mlp = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))
        self.first, self.need_weights = settings.get("batch_first", False), need_weights
        self.register_buffer("mask", torch.triu(torch.full((7, 7), -torch.inf), 1) if masked else None)

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        other = x
        x = self.embed(x)
        y = self.norm(x)
        other = y if self.context is None else self.context(other)
        y, _ = self.attention(y, other, other, need_weights=self.need_weights, attn_mask=self.mask)
        x = x + y
        return self.head((x + self.mlp(x)).mean(1 if self.first else 0))


def window_network(second: bool = False, **settings) -> nn.Module:
    """Two stages of a small Swin transformer, of the first or the second version."""
    kinds = {"block": swin_transformer.SwinTransformerBlock}
    if second:
        kinds = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    network = swin_transformer.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=5, **kinds, **settings)
    for parameter in network.parameters():
        if parameter.dim() == 2 and parameter.shape[1] in (2, 4):  # positions that matter
            nn.init.normal_(parameter)
    return network


CASES = {
    "tokens first": (lambda: Tokens(), (7, 5), True),
    "batch first": (lambda: Tokens(batch_first=True), (7, 5), True),
    "without bias": (lambda: Tokens(batch_first=True, bias=False), (7, 5), True),
    "three heads": (lambda: Tokens(heads=3, batch_first=True), (7, 5), True),
    "masked": (lambda: Tokens(batch_first=True, masked=True), (7, 5), True),
    "with attention weights": (lambda: Tokens(batch_first=True, need_weights=True), (7, 5), False),
    "another tensor's keys": (lambda: Tokens(context=24, batch_first=True), (7, 5), False),
    "separate weights": (lambda: Tokens(context=16, batch_first=True), (7, 5), False),
    "windows": (window_network, (3, 32, 32), True),
    "windows with margins": (window_network, (3, 26, 30), True),
    "windows of version 2": (lambda: window_network(second=True), (3, 32, 32), True),
}


@pytest.fixture(params=CASES)
def case(request):
    factory, shape, channels = CASES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher, x = factory().eval(), torch.randn(6, *shape)
        for name, parameter in teacher.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return teacher, x, trace(teacher, x), channels


def _heads(graph):
    return {g.name: m for g in graph.groups.values() for m in g.members if m.side == "heads"}


def test_heads_go_whole_and_a_student_computes_what_the_teacher_does_with_them_silenced(case):
    teacher, x, graph, channels = case
    heads = _heads(graph)
    counts = {name: m.num_heads for name, m in teacher.named_modules() if rule_of(m).sides[:2] == ("in", "values")}
    assert {m.layer: graph.groups[name].size for name, m in heads.items()} == counts and len(counts) in (1, 4)
    others = [g for g in graph.groups.values() if any(m.layer in counts and m.side == "out" for m in g.members)]
    assert bool(others) == channels
    with torch.no_grad():
        assert torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))
        widths = {name: graph.groups[name].size - 1 for name in heads}
        silenced = copy.deepcopy(teacher)
        for name, member in heads.items():
            layer = silenced.get_submodule(member.layer)
            projection = rule_of(layer).projection(layer)
            lost = np.repeat(~graph.groups[name].kept(widths[name]), projection.in_features // counts[member.layer])
            projection.weight[:, torch.from_numpy(lost)] = 0
        student, expected = build_student(teacher, graph, Plan.of((), widths)), silenced(x)
        assert not torch.allclose(expected, teacher(x), rtol=1e-3)
        torch.testing.assert_close(student(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(student.train()(x), student.eval()(x))  # nothing here drops out
    for member in heads.values():
        assert student.get_submodule(member.layer).num_heads == counts[member.layer] - 1
        assert student.get_submodule(member.layer).state_dict().keys() == teacher.get_submodule(member.layer).state_dict().keys()


def test_students_with_fewer_heads_cost_what_was_predicted_and_a_refit_brings_them_nearer(case):
    teacher, x, graph, _ = case
    refit = Refit(build_student(teacher, graph, Plan()), graph, x)
    rng = np.random.default_rng(0)
    nearer = []
    for _ in range(8):
        plan = random_plan(graph, rng, removal=0.2)
        student = build_student(teacher, graph, plan)
        for name in ("params", "macs", "memory"):
            resource = RESOURCES.get(name)
            predicted = resource.predict(graph.view(frozenset(plan.removed)), graph.widths(plan))
            assert resource.count(student, x[:1]) == pytest.approx(predicted, rel=1e-12, abs=0), name
        student.train()(x).square().sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
        with torch.no_grad():
            student.eval()
            before = (student(x) - teacher(x)).norm()
            refit(student, plan)
            nearer.append(float((student(x) - teacher(x)).norm() / before))
    assert max(nearer) < 0.8 and np.median(nearer) < 0.3
    plan = Plan.of((), {name: 1 for name in _heads(graph)})
    student = build_student(teacher, graph, plan)
    with torch.no_grad():
        before = (student(x) - teacher(x)).norm()
        refit(student, plan)  # the projection behind the heads makes up for those that are gone
        assert (student(x) - teacher(x)).norm() < 0.6 * before


def test_heads_are_ranked_by_what_they_tell_the_projection_behind_them(case):
    teacher, x, graph, _ = case
    name, member = next(iter(_heads(graph).items()))
    layer = teacher.get_submodule(member.layer)
    projection, size = rule_of(layer).projection(layer), graph.groups[name].size
    width = projection.in_features // size
    with torch.no_grad():  # the first head says nothing, the last one much, whatever else its weights are
        projection.weight[:, :width] = 0
        projection.weight[:, -width:] *= 30
        rule_of(layer).packed(layer)[:width] *= 100
    found = reconstruction.rank(build_student(teacher, graph, Plan()), graph, x)
    assert found.orders[name][0] == size - 1 and found.orders[name][-1] == 0
    scores = rule_of(layer).scores(layer, "values").reshape(size, width).sum(1)
    assert scores.argmax() == 0  # by the weights alone, the first would matter most


def test_fewer_heads_and_channels_are_the_same_in_onnx(tmp_path):
    for factory, shape in ((lambda: Tokens(batch_first=True), (7, 5)), (window_network, (3, 32, 32))):
        torch.manual_seed(0)
        teacher, x = factory().eval(), torch.randn(2, *shape)
        graph = trace(teacher, x)
        plan = graph.canonical(frozenset(), graph.allowed(graph.full / 2))
        assert len(plan.widths) == len(graph.groups)
        assert export_onnx(build_student(teacher, graph, plan), x, tmp_path / "student.onnx") <= 1e-4


def test_channels_stay_where_a_tuple_of_tensors_or_a_margin_holds_them():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention, self.head = nn.Linear(5, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.attention(x, x, x)[0])

    graph = trace(Bare().eval(), torch.randn(2, 7, 5))
    assert {name: g.size for name, g in graph.groups.items()} == {"attention": 2}
    assert graph.left_alone["embed"] == "attention gives its attention weights, too"
    margins = trace(window_network().eval(), torch.randn(2, 3, 26, 30))
    assert margins.left_alone["features.0.0"] == "_patch_merging_pad adds a margin"


class Strange(nn.Module):
    """Attention that is called in a way in which no head can go."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.head = kind, nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=kind == "bias")
        self.register_buffer("mask", torch.zeros(2, 5, 5))

    def forward(self, x):
        if self.kind == "mask":
            mask = self.mask.repeat(x.shape[0], 1, 1)
            return self.head(self.attention(x, x, x, need_weights=False, attn_mask=mask)[0]).mean(1)
        y, weights = self.attention(x, x, x)
        return self.head(y).mean(1) + (weights.mean((1, 2)).unsqueeze(1) if self.kind == "weights" else 0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bias", "attends to keys and values that no token gives"),
        ("mask", "has a mask for each head"),
        ("weights", "gives its attention weights to what comes behind it"),
    ],
)
def test_heads_that_cannot_go_stay(kind, reason):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher, x = nn.Sequential(nn.Linear(4, 8), Strange(kind)).eval(), torch.randn(2, 5, 4)
    graph = trace(teacher, x)
    assert not graph.groups and graph.left_alone["0"] == f"1.attention {reason}"
    with torch.no_grad():
        assert torch.equal(build_student(teacher, graph, Plan())(x), teacher(x))


def test_widths_of_heads_are_multiples_for_the_hardware():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Tokens(width=48, heads=12, batch_first=True).eval()
    graph = trace(teacher, torch.randn(2, 7, 5), channel_multiple=16)
    assert graph.groups["attention"].step == 4  # heads of 4 numbers each
    assert isinstance(build_student(teacher, graph, Plan.of((), {"attention": 4})).attention, HeadAttention)


def test_torchvisions_transformers_shrink_in_every_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10).eval()
    nn.init.normal_(teacher.heads.head.weight)
    graph = trace(teacher, torch.randn(2, 3, 32, 32))
    whole = graph.view(frozenset())
    assert whole.macs(graph.floor) < 0.1 * whole.macs(graph.full)
    assert list(graph.left_alone) == ["heads.head", "conv_proj"] and len(graph.groups) == 5
