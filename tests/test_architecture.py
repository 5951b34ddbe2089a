"""What may know what: imports point down, importing the package is cheap, and what is private stays in its file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compress_env

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path) -> Path:
    """The package as it is installed: agents/ is a folder in it, so that each module has the name by which it is imported."""
    shutil.copytree(ROOT / "compress_env", tmp_path / "compress_env", ignore=shutil.ignore_patterns("agents", "weights"))
    shutil.copytree(ROOT / "agents", tmp_path / "compress_env" / "agents")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


def test_imports_point_down_only(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module, line", [
    ("search/recorder.py", "from compress_env.agents.saved import load_policy"),
    ("search/run.py", "import compress_env.agents.sb3"),
    ("walk/walk.py", "import gymnasium"),
    ("surgery/build.py", "from compress_env.problem import Problem"),
])  # fmt: skip
def test_an_import_that_points_up_is_found(tree, module, line):
    path = tree / "compress_env" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(tree)
    assert done.returncode == 1 and f"compress_env.{module[:-3].replace('/', '.')} ->" in done.stdout


def test_the_linter_finds_no_fault():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_neither_torch_nor_stable_baselines():
    code = "import sys, compress_env; print([m for m in ('torch', 'stable_baselines3', 'torchvision') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_one_folder_knows_stable_baselines_and_agents_leave_the_insides_of_environments_alone():
    agents = [*(ROOT / "agents").rglob("*.py")]
    imports = re.compile(r"^\s*(?:import|from) (?:stable_baselines3|sb3_contrib)", re.M)
    users = {p.parent.name for p in [*agents, *(ROOT / "compress_env").rglob("*.py")] if imports.search(p.read_text())}
    assert users == {"sb3"}
    assert not [p for p in agents if ".unwrapped" in p.read_text() or ".kind" in p.read_text()]


def test_rewards_are_plain_python():
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", (ROOT / "compress_env/rewards.py").read_text(), re.M)


def test_public_names_exist():
    for name in compress_env.__all__:
        assert getattr(compress_env, name) is not None


PRODUCT = [path for folder in ("compress_env", "agents") for path in sorted((ROOT / folder).rglob("*.py"))]
ADAPTERS = ("compress_env/search/run.py", "agents/sb3/")
"""Where environments are taken out of their wrappers: what drives an environment is brought in line with asking and telling there."""
OF_LIBRARIES = {
    "_replace": "a public method of named tuples",
    "_exit": "os._exit ends a worker process that must not clean up its parent's files",
    **dict.fromkeys(("_parameters", "_buffers", "_modules"), "the tables of an nn.Module, copied without what they hold"),
    **dict.fromkeys(("_DropoutNd", "_InstanceNorm", "_BatchNorm"), "base classes of layers that PyTorch has no other name for"),
    "_cdata": "the only name of a storage that meta tensors have, too",
    **dict.fromkeys(("_forward_pre_hooks", "_tensor_name"), "where hooks that compute weights are found, and which ones"),
    **dict.fromkeys(("_rng", "_random_sampler"), "random states of Optuna's samplers, which a resumed search goes on from"),
    "_version": "the only way to see that a tensor was written to",
    "_is_avx512_bf16_supported": "PyTorch has no public question for it",
    "_scaled_dot_product_flash_attention_for_cpu": "an operator that PyTorch's own table of formulas lacks",
    "_validate_args": "checks that cannot be traced",
    **dict.fromkeys(("_predict", "_last_obs"), "parts of Stable-Baselines3 that a checkpoint and a saved policy need"),
}
"""Private attributes of other libraries that are used, and why."""


def _code_lines(node: ast.AST, source: str) -> int:
    """Lines of code from `node` on, without its docstrings, comments and blank lines."""
    first, last = node.lineno, node.end_lineno
    texts = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, str):
            texts |= set(range(inner.lineno, inner.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(first <= i <= last and i not in texts and bool(re.match(r"\s*[^\s#]", line)) for i, line in lines)


def _foreign(tree: ast.Module) -> set[str]:
    """Private names of other files that a file uses: `x._name` for an x that is not its own, or `from y import _name`."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                own.add(node.attr)
            elif ast.unparse(node.value) != "super()":
                found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if re.match("_[^_]", alias.name)}
    return found - own


def test_environments_have_at_most_120_lines_of_code():
    sizes = {}
    for path in (ROOT / "compress_env/envs").glob("*.py"):
        source = path.read_text()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Env"):
                sizes[node.name] = _code_lines(node, source)
    assert sizes.keys() == {"LayerRemovalEnv", "LayerRemovalPlantedEnv", "NetworkGrowthEnv", "NetworkTransformationEnv"}
    assert sizes["LayerRemovalEnv"] > 50 and max(sizes.values()) <= 120, sizes


def test_environments_are_taken_out_of_their_wrappers_in_adapters_alone():
    users = {str(p.relative_to(ROOT)) for p in PRODUCT if re.search(r"\.unwrapped\b", p.read_text())}
    assert {user for user in users if not user.startswith(ADAPTERS)} == set()


def test_private_names_are_used_in_their_own_file_alone():
    assert _foreign(ast.parse("from a import _b\nc._d\nself._e\nx._e\nclass K:\n  def _f(self): K()._f()")) == {"_b", "_d"}
    used = {path.relative_to(ROOT): _foreign(ast.parse(path.read_text())) for path in PRODUCT}
    assert {str(path): names for path, own in used.items() if (names := own - OF_LIBRARIES.keys())} == {}
    assert set().union(*used.values()) == OF_LIBRARIES.keys()
