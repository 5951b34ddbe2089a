"""The package says of itself: what it depends on, which folders are part of it, and that it has types."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from compress_env.extras import EXTRAS

ROOT = Path(__file__).parent.parent
PRODUCT = ("compress_env", "agents")
OWN = {"compress_env", "agents", "benchmarks", *(p.stem for p in ROOT.glob("*/*.py") if p.parent.name in ("tests", "examples"))}
USERS_OWN = {"wandb", "mlflow", "modelopt"}  # of two examples and a row of benchmarks.peers, whose users have them
NOT_IMPORTED = {
    "cmaes": "Optuna's CMA-ES sampler imports it",
    "onnxscript": "PyTorch's ONNX exporter imports it",
    "import-linter": "a command, run by tests/test_architecture.py",
    "mypy": "a command, run by `make types`",
    "pytest-xdist": "pytest -n",
    "ruff": "a command, run by tests/test_architecture.py",
}


@pytest.fixture(scope="module")
def settings():
    """The contents of pyproject.toml."""
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())


def sources(*folders: str) -> list[Path]:
    """Python files of these folders of the repository, each once."""
    return sorted({path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")})


@cache
def distributions() -> dict[str, list[str]]:
    """For each module that is installed, the names of its distributions."""
    return dict(packages_distributions())


def imported(*folders: str) -> set[str]:
    """Distributions, by their normalised names, whose modules are imported in these folders."""
    modules = set()
    for path in sources(*folders):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            modules |= {name.partition(".")[0] for name in names}
    known = distributions()
    return {known.get(name, [name])[0].lower().replace("_", "-") for name in modules - OWN - sys.stdlib_module_names}


def declared(requirements: list[str]) -> set[str]:
    """Normalised names of requirements such as `numpy>=2.0`."""
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def of_extras(settings, *names: str) -> set[str]:
    """Normalised names of what extras install, beside the core."""
    known, found = settings["project"]["optional-dependencies"], set()
    for text in (text for name in names for text in known[name]):
        others = re.fullmatch(r"compress-env\[(.*)\]", text)
        found |= of_extras(settings, *others[1].split(",")) if others else declared([text])
    return found


def test_everything_that_is_imported_is_declared_and_the_other_way_round(settings):
    core, extra, tests = declared(settings["project"]["dependencies"]), of_extras(settings, "all"), of_extras(settings, "test")
    assert {"torch", "pillow", "scikit-learn"} <= imported(*PRODUCT)
    assert imported(*PRODUCT) - core == extra - NOT_IMPORTED.keys()
    assert imported("benchmarks", "examples") - core <= of_extras(settings, "bench", "ray") | USERS_OWN
    assert imported("tests") - core - tests == set()
    assert core - imported(*PRODUCT) == set()
    assert tests - imported(*PRODUCT, "tests") - NOT_IMPORTED.keys() == set()
    assert NOT_IMPORTED.keys() <= tests - imported(*PRODUCT, "tests")


def test_packages_of_extras_are_imported_where_they_are_needed_only(settings):
    extra = of_extras(settings, "all")
    assert {EXTRAS[name] for name in EXTRAS} <= settings["project"]["optional-dependencies"].keys()
    assert extra == {name.replace("_", "-") for name in EXTRAS}
    for path in sources(*PRODUCT):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {name.name for node in top if isinstance(node, ast.Import) for name in node.names}
        modules |= {node.module.partition(".")[0] for node in top if isinstance(node, ast.ImportFrom) and node.module}
        assert path.stem in ("optuna_search", "policy_graph") or not modules & EXTRAS.keys(), path


def test_every_folder_of_the_product_is_installed(settings):
    folders = {path.parent.relative_to(ROOT) for path in sources(*PRODUCT)}
    names = {".".join(folder.parts) for folder in folders}
    assert {re.sub("^agents", "compress_env.agents", name) for name in names} == set(settings["tool"]["setuptools"]["packages"])
    assert settings["tool"]["setuptools"]["package-dir"] == {"compress_env.agents": "agents"}


def test_files_that_are_no_code_are_installed(settings):
    patterns = settings["tool"]["setuptools"]["package-data"]
    given = {path.resolve() for name, own in patterns.items() for pattern in own
             for path in (ROOT / re.sub(r"^compress_env\.agents", "agents", name).replace(".", "/")).glob(pattern)}  # fmt: skip
    others = {path.resolve() for folder in PRODUCT for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {path for path in others if path.suffix not in (".py", ".pyc")} == given


def test_modules_that_mypy_does_not_check_are_as_few_as_listed(settings):
    ignored = [name for own in settings["tool"]["mypy"].get("overrides", []) for name in own["module"]]
    assert ignored == []
