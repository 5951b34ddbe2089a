"""What may know what: imports point down, and importing the package is cheap."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import compress_env

ROOT = Path(__file__).parent.parent


def test_imports_point_down_only():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_finds_no_fault():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_loads_neither_torch_nor_stable_baselines():
    code = "import sys, compress_env; print([m for m in ('torch', 'stable_baselines3', 'torchvision') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_one_file_knows_stable_baselines_and_rewards_are_plain_python():
    users = [
        p.name
        for d in ("compress_env", "agents")
        for p in (ROOT / d).rglob("*.py")
        if "stable_baselines3" in p.read_text()
    ]
    assert users == ["sb3.py"]
    assert "torch" not in re.findall(r"^(?:import|from) (\w+)", (ROOT / "compress_env/rewards.py").read_text(), re.M)


def test_public_names_exist():
    for name in compress_env.__all__:
        assert getattr(compress_env, name) is not None
