"""`inspect`: rows that add up to what students really use, readable text, a picture, and one line for what a user gets wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from networks import NETWORKS, vgg
from test_cli import refused, works
from torch import nn

import compress_env
from compress_env.errors import UserError
from compress_env.report.inspect import inspect, text
from compress_env.report.tree import save_picture
from compress_env.resources.base import RESOURCES
from compress_env.surgery.build import build_student
from compress_env.surgery.trace import trace


@pytest.fixture(scope="module", params=["resnet20-cifar10", "vgg-bn", "functional"])
def found(request):
    """`(teacher, shape, inspection)`."""
    factory, shape = NETWORKS[request.param]
    teacher = factory().eval()
    return teacher, shape, inspect(teacher, shape)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_each_share_is_what_the_student_that_is_built_really_saves(found):
    teacher, shape, inspection = found
    graph = trace(teacher, torch.zeros(1, *shape))
    assert {r.name for r in inspection.rows if r.kind == "group"} == set(graph.groups)
    assert {r.name for r in inspection.rows if r.kind not in ("group", "stays")} == set(graph.blocks)
    for row in inspection.rows:
        if row.kind == "stays":
            assert not row.shares
            continue
        widths, removed = graph.full.copy(), frozenset()
        if row.kind == "group":
            widths[graph.group_index[row.name]] = graph.groups[row.name].floor
            assert row.channels == (graph.groups[row.name].size, graph.groups[row.name].floor)
        else:
            removed = frozenset([row.name])
            assert row.layers == len(graph.blocks[row.name].layers)
        student = build_student(teacher, graph, graph.canonical(removed, widths))
        assert row.shares["params"] == pytest.approx(1 - parameters(student) / parameters(teacher))


def test_every_layer_with_weights_is_accounted_for(found):
    teacher, shape, inspection = found
    graph = trace(teacher, torch.zeros(1, *shape))
    inside = {layer for block in graph.blocks.values() for layer in block.layers}
    narrow = {m.layer for group in graph.groups.values() for m in group.members if m.side == "out"}
    heavy = {name for name, layer in graph.layers.items() if layer.kind != "norm"}
    assert heavy - inside - narrow <= set(inspection.stays)
    assert set(graph.left_alone) <= set(inspection.stays) | set(inspection.only_shrink)
    assert set(inspection.only_shrink) <= narrow and not narrow & set(inspection.stays)


def test_the_smallest_usage_is_reachable_by_a_student_and_no_more_than_the_teachers(found):
    teacher, shape, inspection = found
    graph = trace(teacher, torch.zeros(1, *shape))
    smallest = build_student(teacher, graph, graph.canonical(frozenset(graph.blocks), graph.floor))
    assert inspection.smallest["params"] <= parameters(smallest)
    assert inspection.usage["params"] == parameters(teacher)
    for name, least in inspection.smallest.items():
        assert 0 < least < inspection.usage[name]


def test_what_vanishes_with_a_unit_stands_below_it(found):
    path: list = []
    for row in found[2].rows:
        assert row.depth <= len(path)
        del path[row.depth :]
        if path:
            assert path[-1].kind not in ("group", "stays")
            assert row.layers <= path[-1].layers
        path.append(row)


@pytest.mark.parametrize("width", [70, 80, 120])
def test_text_keeps_within_the_width_with_aligned_columns(found, width):
    lines = text(found[2], width).splitlines()
    assert max(map(len, lines)) <= width
    start = next(i for i, line in enumerate(lines) if "channels" in line and "kind" in line)
    table = lines[start + 1 : start + 1 + len(found[2].rows)]
    ends = [lines[start].index(r) + len(r) for r in found[2].usage]
    for line, row in zip(table, found[2].rows):
        assert [line[:end].split()[-1] for end in ends if row.shares] == [f"{s:.1%}" for s in row.shares.values()]


def test_nested_names_are_shortened_at_their_beginning():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_module_with_a_name_that_is_much_too_long_for_a_line_of_a_terminal = vgg()

        def forward(self, x):
            return self.a_module_with_a_name_that_is_much_too_long_for_a_line_of_a_terminal(x)

    lines = text(inspect(Deep().eval(), (3, 8, 8)), 70).splitlines()
    assert any(re.match(r" *…\S*l\.0 +group", line) for line in lines)
    assert all(len(line) <= 70 for line in lines if "%" in line)


def test_a_network_with_nothing_to_compress_says_so():
    inspection = compress_env.inspect(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), (1, 2, 2))
    assert str(inspection).startswith("Sequential: nothing to compress")
    assert inspection.smallest == inspection.usage
    assert list(inspection.stays) == ["1"]


def test_kept_layers_are_named_and_the_smallest_usage_rises():
    teacher = NETWORKS["resnet20-cifar10"][0]().eval()
    whole, kept = inspect(teacher, (3, 32, 32)), inspect(teacher, (3, 32, 32), protect=["stages.0.*"])
    assert not any(row.name.startswith("stages.0") and row.shares for row in kept.rows)
    assert {n for n in kept.stays if n.startswith("stages.0")} == {
        f"stages.0.{i}.conv{j}" for i in range(3) for j in (1, 2)
    }
    assert kept.smallest["macs"] > whole.smallest["macs"]
    assert inspect(teacher, (3, 32, 32), min_width=0.5).smallest["params"] > whole.smallest["params"]


def test_latency_is_measured_if_asked_for():
    inspection = inspect(resources=("latency",))
    assert inspection.usage["latency"] > 0 and inspection.smallest["latency"] > 0
    assert "latency" in inspection.rows[0].shares and "latency" not in inspect().usage
    assert str(inspection).endswith(f"measured with: {inspection.runtime}") and not inspect().runtime


def test_a_users_own_resource_is_shown_with_its_unit():
    inspection = inspect(resources=["examples/my_resource.py:Energy"])
    line = next(line for line in str(inspection).splitlines() if line.startswith("energy"))
    assert inspection.smallest["energy"] < inspection.usage["energy"] and line.split()[1] == RESOURCES.get("energy").unit


def test_a_picture_is_drawn_to_any_of_the_formats_and_grows_with_the_rows(tmp_path, found):
    inspection = found[2]
    pixels = imread(save_picture(inspection, tmp_path / "a.png"))
    assert pixels.shape[0] > 20 * len(inspection.rows) and pixels.shape[1] > 800
    blue = np.abs(pixels[..., :3] - np.array([0x2F, 0x6D, 0xB5]) / 255).max(-1) < 0.02
    assert blue.any() == any(row.kind not in ("group", "stays") for row in inspection.rows)
    assert "<svg" in save_picture(inspection, tmp_path / "a.svg").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a.svg"}


# The command


def test_the_command_needs_no_data_for_a_shipped_teacher(tmp_path):
    printed = works("inspect", "--teacher", "resnet20-cifar10", "--picture", tmp_path / "a.png")
    first = " ".join(printed.split("\n\n")[0].split())
    assert first == "resnet20-cifar10, inputs of 3x32x32: 9 blocks can be removed and 12 groups of channels can shrink"
    assert "fc: its channels are the network's outputs" in printed
    assert re.search(r"^macs +MACs +40,813,184 +[\d,]+ +\d\.\d%$", printed, re.M)
    assert printed.endswith(f"picture: {tmp_path / 'a.png'}\n") and (tmp_path / "a.png").stat().st_size > 10_000


def test_the_scope_of_a_search_is_the_scope_of_what_is_shown():
    printed = works("inspect", "--removable", "stages.2.*", "--shrinkable", "stages.0.*", "--channel-multiple", 8)
    rows = re.findall(r"^ *(\S+) +(?:branch|group) +\d+ (?: +(\d+ to \d+))?", printed, re.M)
    assert rows == [("stages.0.0.conv1", "16 to 8"), ("stages.2.0", "")]


def test_the_smallest_usage_is_what_a_search_refuses_to_go_below(tmp_path):
    least = re.search(r"^macs.* ([\d,]+) +\d", works("inspect"), re.M).group(1)
    line = refused("search", "--budget", "macs=0.01%", "--evaluations", 1, "--out", tmp_path / "a")
    assert f"the smallest reachable is {least} " in line


@pytest.fixture
def own(tmp_path):
    """A file with a factory of a network for 3x8x8 inputs."""
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))\n"
    )
    return f"{file}:net"


def test_ones_own_teacher_needs_an_input_shape_only(own):
    printed = works("inspect", "--teacher", own, "--input-shape", "3,8,8")
    assert "inputs of 3x8x8: 0 blocks can be removed and 1 group of channels can shrink" in " ".join(printed.split())


def test_data_tells_the_input_shape_too():
    assert works("inspect", "--data", "digits") == works("inspect")


@pytest.mark.parametrize("options, told", [
    ((), "does not say what it takes; give an input shape, for example 3,224,224, or data"),
    (("--input-shape", "3,9,9"), r"does not take float32 inputs of shape \(3, 9, 9\) on cpu: .*; give other data, or"),
    (("--input-shape", "3x8x8"), "'3x8x8' is not whole numbers with commas between them"),
    (("--input-shape", "3,0,8"), "is not a shape of one input"),
    (("--input-shape", "3,8,8", "--data", "digits"), "give data or an input shape, not both"),
    (("--input-shape", "3,8,8", "--image-size", "8"), "an image size is for data"),
    (("--input-shape", "3,8,8", "--protect", "features.*"), r"no layer is called 'features.\*'; layers are 0, 3 and so on"),
    (("--input-shape", "3,8,8", "--shrinkable", "stem"), "no layer is called 'stem'"),
    (("--input-shape", "3,8,8", "--picture", "a.gif"), "the name has to end in .png, .svg, .pdf"),
    (("--input-shape", "3,8,8", "--picture", "gone/a.png"), "there is no folder gone; make it first"),
    (("--data", "imagefolder:nowhere"), "nowhere needs the folders"),
])  # fmt: skip
def test_what_a_user_gets_wrong_is_told(own, options, told):
    assert re.search(told, refused("inspect", "--teacher", own, *options))


def test_a_teacher_in_training_mode_is_refused():
    with pytest.raises(UserError, match="is in training mode; call .eval"):
        inspect(vgg().train(), (3, 8, 8))


def test_a_setting_that_plays_no_part_is_refused():
    with pytest.raises(UserError, match="no argument 'ranking'"):
        inspect(vgg(), (3, 8, 8), ranking="magnitude")
