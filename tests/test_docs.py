"""The documentation names only what exists, its code runs, and its links lead somewhere."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import fresh
import pytest

import compress_env

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
HOME = DOCS / "index.md"
SITE = sorted(DOCS.rglob("*.md"))
"""Pages of the site; those below `project` and `environments` show files from elsewhere."""
PAGES = [README, ROOT / "CONTRIBUTING.md", *SITE]
TOP = "agents|benchmarks|compress_env|docs|examples|tests"
FLAG = r"--[a-z][a-z0-9-]*"
COMMAND = r"(?:compress-env(?!\[)|python -m benchmarks\.\w+)\b[^\n`]*"
GROUPS = ("bench", "policy")

QUICK = """from compress_env.resources.latency import stopwatch, table
stopwatch.SECONDS, stopwatch.PATIENCE, table.SHARES, table.MIXED = 0.05, 1, (1.0, 0.3), 2
"""
"""Before the pages of which each block measures a whole network: measurements are short, and of fewer students."""

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


@cache
def help_of(command: tuple[str, ...]) -> str:
    """The help of a command, of which `command` is how it is called with `python -m`; it runs in this process, which is quicker."""
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.setattr(sys, "argv", [*command, "--help"])
        patch.delitem(sys.modules, command[0], raising=False)  # run anew, as a command is
        try:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        except (SystemExit, ImportError) as end:
            if not isinstance(end, SystemExit) or end.code:
                raise LookupError(f"{' '.join(command)}: {[str(end), *errors.getvalue().splitlines()][-1]}") from None
    return printed.getvalue()


def call(line: str) -> tuple[tuple[str, ...], list[str]]:
    """How a documented command line is called with `python -m`, and its flags."""
    words = shlex.split(line, comments=True)
    if words[0] == "compress-env":
        names = [w for w in words[1:3] if re.fullmatch(r"[a-z]+", w)]
        command = ("compress_env.cli", *names[: 2 if names[:1] and names[0] in GROUPS else 1])
    else:
        command = (words[2],)
    return command, re.findall(FLAG, line)


def text_of(page: Path) -> str:
    """Its text, without the targets of links and the head of a notebook."""
    text = re.sub(r"\A---\n.*?\n---\n+", "", page.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


def python_of(page: Path) -> list[str]:
    """Its blocks of Python, but for cells of notebooks, which are run when the site is built."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def test_commands_are_split_into_names_and_flags():
    assert call("compress-env bench run --list") == (("compress_env.cli", "bench", "run"), ["--list"])
    assert call("compress-env policy apply p.onnx --out a") == (("compress_env.cli", "policy", "apply"), ["--out"])
    assert call("compress-env search --budget macs=0.2..0.8") == (("compress_env.cli", "search"), ["--budget"])
    assert call("python -m benchmarks.speed --seconds 3") == (("benchmarks.speed",), ["--seconds"])


@by_page
def test_commands_and_their_flags_exist(page):
    wrong = []
    for line in sorted(set(re.findall(COMMAND, text_of(page)))):
        command, flags = call(line)
        try:
            known = set(re.findall(FLAG, help_of(command)))
        except LookupError as error:
            wrong.append(str(error))
            continue
        wrong += [f"{' '.join(command)} has no {flag}" for flag in flags if flag not in known]
    assert not wrong, "\n".join(wrong)


@by_page
def test_flags_named_alone_belong_to_some_command(page):
    alone = set(re.findall(f"`({FLAG})", page.read_text(encoding="utf-8")))
    commands = ["search", "finetune", "distill", "policy learn", "policy apply", "bench run", "bench report", "bench policy", "export",
                "push"]
    called = [("compress_env.cli", *name.split()) for name in (*commands, "inspect")]
    called += [("benchmarks.fidelity",), ("benchmarks.losses",), ("benchmarks.workers",)]
    for command in called:
        alone -= alone and set(re.findall(FLAG, help_of(command)))
    assert not alone


@by_page
def test_files_in_backticks_exist(page):
    named = re.findall(rf"(?<![\w/])((?:{TOP})/[\w./-]*|[A-Z]+\.md|pyproject\.toml|Makefile)(?![\w/.:-])", text_of(page))
    missing = {name for name in named if "NAME" not in name and not (ROOT / name.rstrip(".")).exists()}
    assert not missing


@by_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, heading = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.is_file(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, target


@by_page
def test_a_page_begins_by_saying_what_it_tells(page):
    title, first, *_ = text_of(page).strip().split("\n\n")
    assert title.startswith("# ") and first.endswith(".")
    if page not in (README, HOME):
        assert first.startswith("This page ")


def test_the_readme_fits_a_few_screens_and_leads_to_the_site():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "(docs/index.md)" in text


def test_every_page_of_the_site_is_reached_from_home():
    trees = re.findall(r"```{toctree}\n(.*?)```", HOME.read_text(encoding="utf-8"), re.S)
    reached = [line for tree in trees for line in tree.split("\n\n")[1].split()]
    assert sorted(reached) == sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in SITE if page != HOME)


def test_the_reference_has_every_public_name():
    documented = set(re.findall(r"auto\w+:: compress_env\.(?:search\.)?(\w+)", (DOCS / "api.md").read_text(encoding="utf-8")))
    assert {name for name in compress_env.__all__ if not re.fullmatch("[A-Z_]+|__.*", name)} <= documented


def test_a_program_that_fails_or_warns_is_noticed_and_has_nothing_of_other_tests(tmp_path):
    done = fresh.run("import sys; print('compress_env' in sys.modules); 1 / 0", tmp_path)
    assert (done.returncode, done.stdout) == (1, "False\n") and done.stderr.endswith("ZeroDivisionError: division by zero\n")
    warns = "import warnings; warnings.warn('careful'); raise SystemExit(3)"
    assert [fresh.run(warns, tmp_path, strict=strict).returncode for strict in (False, True)] == [3, 1]


@pytest.mark.parametrize("page", [p for p in PAGES if python_of(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_runs_as_it_stands(page, tmp_path):
    for code in python_of(page):
        # the first needs images that are not here, the second is a file to save, which commands of the page use: benchmarks.tutorials
        if "imagefolder:DIR" in code or re.match(r"# \w+\.py\n", code):
            compile(code, page.name, "exec")
            continue
        done = fresh.run(QUICK * (page.stem in ("latency", "curve")) + code, ROOT, {"TMPDIR": str(tmp_path)}, strict=True)
        assert done.returncode == 0, done.stderr
        if page == README:
            rewards = {name: float(reward) for name, reward in re.findall(r"^(\w+) +reward (0\.\d+)", done.stdout, re.M)}
            learned = {name: float(reward) for name, reward in re.findall(r"^(random|DDPG)\D+150 +(0\.\d+)", done.stdout, re.M)}
            assert bool(rewards) != bool(learned)
            assert not rewards or rewards["model"] > rewards["allocation"] > rewards["uniform"]
            assert not learned or learned["DDPG"] > learned["random"]
