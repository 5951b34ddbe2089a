"""Shared fixtures. One torch thread: two are many times slower for networks this small."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import cache

import gymnasium as gym
import pytest
import torch
from allocations import QUICK, SPEC
from networks import NETWORKS

import compress_env  # noqa: F401 - registers the environments
from compress_env.objective import Objective
from compress_env.problem import Problem
from compress_env.resources.latency import stopwatch
from compress_env.spec import EnvironmentSpec
from compress_env.surgery.trace import trace
from compress_env.testing.agent import planted


def pytest_addoption(parser):
    parser.addoption(
        "--every-export", action="store_true", help="test_networks*.py: compare all students in ONNX Runtime, grow everywhere"
    )


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What tests measure stays out of the user's cache; the processes of one run share theirs."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_ENV_CACHE", str((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_measurements_of_time():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopwatch, "SECONDS", 0.1)
        patch.setattr(stopwatch, "PATIENCE", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_of_onnx_are_read_once():
    """`torch.onnx` reads its table of operators anew for each export, which takes half a second."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):  # a name of PyTorch's own, which may change
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="module")
def one_problem():
    """A problem is built once for the same settings and measurements, and shared."""
    build, built = Problem.build, {}

    def once(spec, *, measured=None, progress=False):
        key = repr(spec), measured and json.dumps(measured.to_json())
        if key not in built:
            built[key] = build(spec, measured=measured, progress=progress)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "build", once)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run's folder, and what --json --quiet left on standard output and standard error. Tests leave it as it is."""
    from test_cli import SEARCH, call

    out = tmp_path_factory.mktemp("finished") / "a"
    done = call(*SEARCH, "--quiet", "--json", "--out", out)
    assert done.exit_code == 0, done.output
    return out, done.stdout, done.stderr


@pytest.fixture(scope="session")
def make_planted():
    """Fresh objectives, judged by a formula, of one problem."""
    return planted


@pytest.fixture(scope="session", params=sorted(NETWORKS))
def network(request):
    """`(teacher, example, graph)` for each test network."""
    factory, shape = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = factory().eval()
        example = torch.randn(2, *shape)
        with torch.no_grad():  # normalisation statistics as after training, not 0 and 1
            teacher.train()(torch.randn(16, *shape))
    return teacher.eval(), example, trace(teacher, example)


@pytest.fixture(scope="session")
def digits_env():
    """The default environment, unwrapped. Made once; tests reset it and leave its caches be."""
    return gym.make("LayerRemoval-v0").unwrapped


@pytest.fixture(scope="session")
def objective() -> Objective:
    """ResNet-8 on the digits; its sensitivities are measured."""
    return Objective(SPEC)


@pytest.fixture(scope="session")
def chain() -> Objective:
    """VGG-7 on the digits, where all that comes after a block depends on it."""
    return Objective(EnvironmentSpec.of_keywords(teacher="vgg7-digits", **QUICK))


def pytest_terminal_summary(terminalreporter):
    """The table of networks, put together from what their tests recorded, in whichever process they ran."""
    passed = terminalreporter.stats.get("passed", [])
    properties = [pair for report in passed for pair in report.user_properties]
    for title in ("network", "grown"):
        rows = [value for key, value in properties if key == title]
        if not rows:
            continue
        terminalreporter.section(title)
        cells = [list(rows[0]), *(list(row.values()) for row in sorted(rows, key=lambda r: r["network"]))]
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        for line in cells:
            terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
