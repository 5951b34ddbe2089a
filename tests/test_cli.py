"""The command line: a real run with all that can be done to it, and one line for each thing that a user gets wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import fields
from unittest import mock

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import nn

import compress_env
from compress_env.cli import options
from compress_env.cli.main import main
from compress_env.spec import EnvironmentSpec, EvaluatorSettings, ProblemSpec, SearchSpec, keywords

COMMANDS = ("search", "inspect", "finetune", "distill", "report", "export", "validate", "policy", "bench", "runs", "trials", "list")
COMMANDS += ("push", "pull")
FILES = {"run.json", "problem.json", "sensitivities.json", "trials.jsonl", "search.json", "result.json", "plan.json", "report.html"}
FILES |= {"parts.json", "finalists.jsonl", "student.safetensors", "student.onnx", "student.pt2"}
KEYS = {"metric", "teacher", "student", "resources", "budget", "feasible", "evaluations", "seconds", "agent", "seed", "versions"}
KEYS |= {"command"}
OWN = {"finetune_epochs", "loss", "max_accuracy_drop", "out", "resume", "dry_run", "quiet", "as_json", "config", "trust"}
"""Options of a search that are no settings of the problem, the environment or the agent."""
SEARCH = ["search", "--agent", "random", "--evaluations", "4", "--finetune-epochs", "2"]


def call(*arguments) -> Result:
    """What `compress-env ARGUMENTS` answers, within this process, so that torch is imported once."""
    arguments = [str(a) for a in arguments]
    with mock.patch.object(sys, "argv", ["compress-env", *arguments]):
        return CliRunner().invoke(main, arguments, prog_name="compress-env")


def works(*arguments) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments) -> str:
    """The one line of an error; click's own errors have a line about usage above it."""
    result = call(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output[-500:]
    lines = [line for line in result.output.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and result.output.splitlines()[-1] == lines[0], result.output
    assert "Traceback" not in result.output
    return lines[0]


def search_refused(folder, *options) -> str:
    """The error of a short search, which must not have made its run folder."""
    line = refused("search", "--evaluations", 1, "--finetune-epochs", 0, *options, "--out", folder / "a")
    assert not (folder / "a").exists()
    return line


# A real run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run's folder, and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "a"
    return out, works(*SEARCH, "--out", out)


def test_a_search_leaves_the_files_that_are_promised(run):
    assert {p.name for p in run[0].iterdir()} == FILES


def test_the_result_has_the_promised_keys_and_meets_the_budget(run):
    result = json.loads((run[0] / "result.json").read_text())
    assert result.keys() >= KEYS
    for part in ("teacher", "student"):
        assert result["resources"].keys() == {"params", "macs", "memory", "latency"}
        assert result[part].keys() == {"metric_test", "file_bytes", *result["resources"]}
        assert all(value > 0 for value in result[part].values())
    assert result["budget"] == {"macs": 763_520 / 2} and result["feasible"] is True
    assert result["student"]["macs"] <= result["budget"]["macs"]
    assert result["teacher"]["params"] == 77_754
    assert (result["evaluations"], result["agent"], result["seed"]) == (4, "random", 0)
    assert result["exports"].keys() == {"student.onnx", "student.pt2"} and max(result["exports"].values()) <= 1e-4
    assert result["command"] == f"compress-env {' '.join(SEARCH)} --out {run[0]}"
    assert result["versions"]["compress-env"] == compress_env.__version__
    assert result["metric"] == "accuracy" and result["student"]["metric_test"] > 0.9


def test_the_files_agree_with_each_other(run):
    trials = [json.loads(line) for line in (run[0] / "trials.jsonl").read_text().splitlines()]
    assert [t["index"] for t in trials] == [0, 1, 2, 3]
    result = json.loads((run[0] / "result.json").read_text())
    best = trials[result["best_trial"]]  # of all finalists, here all four, by every validation image
    assert json.loads((run[0] / "plan.json").read_text()) == best["plan"]
    weights = load_file(run[0] / "student.safetensors")
    parameters = sum(v.numel() for k, v in weights.items() if "running" not in k and "num_batches" not in k)
    assert parameters == result["student"]["params"] == best["evaluation"]["usage"]["params"]


def test_the_table_shows_both_networks_the_budget_and_where_the_report_is(run):
    out, printed = run
    result = json.loads((out / "result.json").read_text())
    rows = {line[:20].strip(): line[20:].split() for line in printed.splitlines() if line}
    assert rows["Parameters"][:2] == ["77,754", f"{result['student']['params']:,.0f}"]
    assert rows["MACs"][:2] == ["763,520", f"{result['student']['macs']:,.0f}"]
    assert rows["test accuracy"][1] == f"{result['student']['metric_test']:.2%}"
    assert rows["budget macs"][-1] == "met"
    assert f"report: {out / 'report.html'}" in printed


def test_its_trials_reproduce(run):
    assert works("validate", "--out", run[0], "--count", 2).strip() == "2 of 2 plans reproduce"


@pytest.mark.parametrize("forge, told", [
    (lambda t: t["evaluation"]["metrics"].update(accuracy=0.999), r"accuracy was 0\.999, is now 0\.\d+"),
    (lambda t: t["evaluation"].update(kl=0.001), r"kl was 0\.001, is now \d\.\d+"),
    (lambda t: t.update(reward=2.0), r"reward was 2\.0, is now 0\.\d+"),
    (lambda t: t.update(problem="0" * 16), r"it was recorded for the problem 0{16}, and this one is \w{16}"),
])  # fmt: skip
def test_a_trial_that_was_tampered_with_does_not_reproduce(run, tmp_path, forge, told):
    for name in ("run.json", "problem.json"):
        (tmp_path / name).write_text((run[0] / name).read_text())
    trials = [json.loads(line) for line in (run[0] / "trials.jsonl").read_text().splitlines()]
    best = max(trials, key=lambda t: t["reward"])
    forge(best)
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(t) + "\n" for t in trials))
    result = call("validate", "--out", tmp_path, "--count", 1)
    assert result.exit_code == 1
    assert re.search(rf"trial {best['index']}: {told}\n1 plans judged again, 1 trials differ", result.output), result.output


def test_the_student_can_be_exported_again_elsewhere(run, tmp_path):
    copies = {"--onnx": tmp_path / "copy.onnx", "--pt2": tmp_path / "copy.pt2"}
    printed = works("export", "--out", run[0], *(word for pair in copies.items() for word in pair)).splitlines()
    for path, line in zip(copies.values(), printed, strict=True):
        assert line.startswith(f"{path}: outputs differ from PyTorch's by at most")
        assert abs(path.stat().st_size - (run[0] / f"student{path.suffix}").stat().st_size) < 100
    assert set(tmp_path.iterdir()) == set(copies.values())


def test_an_export_without_a_place_goes_into_the_run_folder(run):
    (run[0] / "student.pt2").unlink()
    printed = json.loads(works("export", "--out", run[0], "--json"))
    assert list(printed) == [str(run[0] / "student.onnx"), str(run[0] / "student.pt2")]
    assert all(0 <= difference < 1e-4 for difference in printed.values())
    assert {p.name for p in run[0].iterdir()} == FILES


def test_the_report_can_be_written_again(run):
    before = (run[0] / "report.html").read_text()
    (run[0] / "report.html").unlink()
    assert works("report", "--out", run[0]).strip().endswith(str(run[0] / "report.html"))
    assert (run[0] / "report.html").read_text() == before


def test_finetuning_again_gives_the_same_student(run):
    before = json.loads((run[0] / "result.json").read_text())
    weights = load_file(run[0] / "student.safetensors")
    works("finetune", "--out", run[0], "--epochs", 2)
    after = json.loads((run[0] / "result.json").read_text())
    assert after["finetune"] == before["finetune"] and len(after["finetune"]["history"]) == 3
    assert all(torch.equal(v, weights[k]) for k, v in load_file(run[0] / "student.safetensors").items())


def test_resuming_a_finished_run_adds_no_trial(run):
    before = (run[0] / "trials.jsonl").read_bytes()
    works(*SEARCH, "--out", run[0], "--resume")
    assert (run[0] / "trials.jsonl").read_bytes() == before


def test_a_run_is_not_overwritten(run):
    assert "has trials of an earlier run; add --resume" in refused(*SEARCH, "--out", run[0])


@pytest.mark.parametrize("option, told", [
    (("--seed", "1"), "begun with seed=0, not 1"),
    (("--budget", "params=0.5"), "begun with budget={'macs': 0.5}, not {'params': 0.5}"),
])  # fmt: skip
def test_a_run_is_not_resumed_with_other_settings(run, option, told):
    assert told in refused(*SEARCH, *option, "--out", run[0], "--resume")


def test_a_search_without_finetuning_says_how_to_go_on(tmp_path):
    printed = works("search", "--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 0, "--out", tmp_path / "a")
    assert f"next: compress-env finetune --out {tmp_path / 'a'}" in printed
    assert not (tmp_path / "a" / "result.json").exists() and (tmp_path / "a" / "report.html").stat().st_size > 1000
    assert "has no plan.json" in refused("export", "--out", tmp_path / "a")


# What a user gets wrong


@pytest.mark.parametrize("option, value, near", [
    ("--teacher", "resnet8-digit", "no teacher 'resnet8-digit'; did you mean 'resnet8-digits'?"),
    ("--agent", "ddgp", "no agent 'ddgp'; did you mean 'ddpg'?"),
    ("--reward", "relativ", "no reward 'relativ'; did you mean 'relative'?"),
    ("--data", "digit", "no data set 'digit'; did you mean 'digits'?"),
    ("--schedule", "twostep", "no schedule 'twostep'; did you mean 'two-step'?"),
    ("--constraint", "harder", "no constraint 'harder'; did you mean 'hard'?"),
    ("--ranking", "magnitud", "no ranking 'magnitud'; did you mean 'magnitude'?"),
    ("--task", "classificatin", "no task 'classificatin'; did you mean 'classification'?"),
    ("--runtime", "eagr", "no runtime 'eagr'; did you mean 'eager'?"),
    ("--evaluator", "distil_steps=1", "no setting 'distil_steps'; did you mean 'distill_steps'?"),
    ("--evaluator", "loss=hintn", "no loss 'hintn'; did you mean 'hinton'?"),
    ("--budget", "param=0.5", "no resource 'param'; did you mean 'params'?"),
    ("--agent", "qwxyz", "known: a2c, allocation, amc, ars, cma-es, crossq, ddpg, dyna-ddpg, dyna-sac, dyna-td3, evolution"),
])  # fmt: skip
def test_an_unknown_name_suggests_the_nearest(tmp_path, option, value, near):
    assert near in search_refused(tmp_path, option, value)


@pytest.mark.parametrize("budget, told", [
    ("macs", "'macs' is not RESOURCE=LIMIT, for example macs=0.5"),
    ("macs=", "is not RESOURCE=LIMIT"),
    ("macs=half", "cannot read the budget 'half' of macs; examples: 0.5, 50%"),
    ("macs=5parsecs", "cannot read the budget '5parsecs'"),
    ("macs=-1", "a budget has to be positive, got -1"),
    ("macs=0", "a budget has to be positive, got 0"),
    ("=0.5", "is not RESOURCE=LIMIT"),
])  # fmt: skip
def test_a_malformed_budget_is_explained(tmp_path, budget, told):
    assert told in search_refused(tmp_path, "--budget", budget)


def test_a_budget_given_twice_is_refused(tmp_path):
    options = ("--budget", "macs=0.5", "--budget", "macs=0.4")
    assert "macs is given twice" in search_refused(tmp_path, *options)


def test_an_unreachable_budget_names_the_smallest_reachable_usage(tmp_path):
    line = search_refused(tmp_path, "--budget", "macs=0.1%")
    told = r"macs of 763\.5 MACs \(0\.1% of the teacher\); the smallest reachable is ([\d,]+) \((\d+\.\d)%\)"
    least, share = re.search(told, line).groups()
    least = least.replace(",", "")
    assert float(share) == round(100 * int(least) / 763_520, 1)
    assert f"reachable is {int(least):,} " in search_refused(tmp_path, "--budget", f"macs={int(least) - 1}")
    quick = ("--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 0)
    assert "best reward" in works("search", "--budget", f"macs={least}", *quick, "--out", tmp_path / "b")  # reachable


def test_missing_and_wrong_weights_are_named(tmp_path):
    assert "there is no weights file" in search_refused(tmp_path, "--weights", tmp_path / "gone.pt")
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "w.safetensors")
    line = search_refused(tmp_path, "--weights", tmp_path / "w.safetensors")
    assert "are not ResNet's: missing conv1.weight; missing bn1.weight; missing bn1.bias and" in line


@pytest.fixture
def teachers(tmp_path):
    """A file with networks that do not fit digits."""
    file = tmp_path / "own.py"
    file.write_text(
        "from torch import nn\n"
        "def net(inputs, classes):\n"
        "    return nn.Sequential(nn.Conv2d(inputs, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))\n"
        "def seven(): return net(1, 7)\n"
        "def colour(): return net(2, 10)\n"
        "def nothing(): return None\n"
    )
    return file


@pytest.mark.parametrize("factory, told", [
    ("seven", "answers with (7,), but the data set 'digits' has 10 classes"),
    ("colour", "does not take float32 inputs of shape (1, 8, 8) on cpu: RuntimeError: "),
    ("nothing", "returned NoneType; it has to return a torch.nn.Module"),
    ("sevn", "did you mean 'seven'?"),
])  # fmt: skip
def test_a_teacher_that_does_not_fit_the_data_is_named(teachers, factory, told):
    assert told in search_refused(teachers.parent, "--teacher", f"{teachers}:{factory}", "--data", "digits")


def test_a_teacher_of_ones_own_needs_data(teachers):
    assert "needs data" in search_refused(teachers.parent, "--teacher", f"{teachers}:seven")


@pytest.mark.parametrize("options, told", [
    (("--evaluations", "0"), "Invalid value for '--evaluations'"),
    (("--finetune-epochs", "-1"), "Invalid value for '--finetune-epochs'"),
    (("--min-width", "2"), "Invalid value for '--min-width'"),
    (("--image-size", "8"), "image_size is for imagefolder:DIR"),
    (("--mean", "0.5"), "mean and std have to be given together"),
    (("--mean", "half", "--std", "1"), "'half' is not numbers with commas between them"),
    (("--evaluator", "refit=maybe"), "'maybe' is not a valid boolean"),
    (("--evaluator", "distill_steps=-1"), "-1 is not in the range x>=0"),
    (("--agent-option", "tau"), "'tau' is not NAME=VALUE"),
    (("--mean", "0.5", "--std", "0"), "deviations above 0"),
    (("--device", "toaster"), "toaster"),
    (("--data", "imagefolder:nowhere"), "nowhere needs the folders train/<class>/ and test/<class>/"),
    (("--evaluation", "4"), "No such option"),
])  # fmt: skip
def test_other_options_out_of_range_are_refused(tmp_path, options, told):
    assert told in search_refused(tmp_path, *options)


def test_an_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    assert "cannot make the folder" in refused("search", "--agent", "uniform", "--out", tmp_path / "a")


@pytest.mark.parametrize("command", ["finetune", "report", "export", "validate"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_no_run_is_named(tmp_path, command, exists):
    folder = tmp_path if exists else tmp_path / "gone"
    assert str(folder) in refused(command, "--out", folder)
    assert list(tmp_path.iterdir()) == []


# Settings and options


def option_names(*commands: str) -> dict[str, click.Option]:
    command = main
    for name in commands:
        command = command.commands[name]
    return {p.name: p for p in command.params if isinstance(p, click.Option)}


def test_every_setting_is_an_option_with_its_help_text():
    options = option_names("search")
    for spec in (ProblemSpec, EnvironmentSpec, SearchSpec):
        for field in fields(spec):
            if field.name != "input_shape" and not field.metadata.get("hidden"):
                assert options[field.name].help.startswith(field.metadata["help"]), field.name
    assert {*options} - {*keywords(), *(f.name for f in fields(SearchSpec))} == OWN


def test_without_options_a_search_has_the_defaults_of_the_settings():
    with main.commands["search"].make_context("search", []) as context:
        given = {n: v for n, v in context.params.items() if n not in OWN}
    assert options.specs(given) == (EnvironmentSpec(), SearchSpec())


def test_options_become_settings():
    arguments = ["--budget", "macs=0.2..0.8", "--budget", "energy.py:Energy=50%", "--protect", "a*", "--protect", "b"]
    arguments += ["--mean", "0.5,1", "--std", "1,2", "--evaluator", "refit=no", "--evaluator", "validation_images=none"]
    arguments += ["--agent-option", "start=a=b..c", "--agent-option", "tau=0.01", "--min-width", "0.2"]
    arguments += ["--latency-threads", "2", "--constraint", "soft"]
    with main.commands["search"].make_context("search", arguments) as context:
        given = {n: v for n, v in context.params.items() if n not in OWN}
    environment, search = options.specs(given)
    assert environment.budget == {"macs": "0.2..0.8", "energy.py:Energy": "50%"} and environment.constraint == "soft"
    assert (environment.problem.protect, environment.problem.mean) == (("a*", "b"), (0.5, 1.0))
    assert (environment.problem.min_width, environment.problem.latency_threads) == (0.2, 2)
    assert environment.evaluator == EvaluatorSettings(refit=False, validation_images=None)
    assert search.agent_options == {"start": "a=b..c", "tau": 0.01}


def test_a_resource_a_reward_and_a_ranking_of_ones_own_are_given_by_their_file(tmp_path):
    (tmp_path / "own.py").write_text(
        "from compress_env.resources.base import Resource\n"
        "class Energy(Resource):\n"
        "    unit = 'mJ'\n"
        "    def predict(self, view, widths): return 2 * view.parameters(widths)\n"
        "    def count(self, student, example): return 2 * sum(p.numel() for p in student.parameters())\n"
        "def half(evaluation, limits): return evaluation.metric / 2\n"
    )
    file = tmp_path / "own.py"
    own = ("--budget", f"{file}:Energy=0.5", "--reward", f"{file}:half", "--ranking", "compress_env.surgery.ranking:magnitude")
    works("search", "--agent", "uniform", "--evaluations", 1, "--finetune-epochs", 0, *own, "--out", tmp_path / "a")
    trial = json.loads((tmp_path / "a" / "trials.jsonl").read_text())
    assert trial["evaluation"]["usage"]["energy"] == 2 * trial["evaluation"]["usage"]["params"] <= trial["limits"]["energy"] == 77_754
    assert trial["reward"] == trial["evaluation"]["metrics"]["accuracy"] / 2
    assert works("validate", "--out", tmp_path / "a", *own).strip() == "1 of 1 plans reproduce"


# Help


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)], ids=" ".join)
def test_help_has_an_example(command):
    printed = works(*command, "--help")
    assert re.search(rf"^  compress-env {' '.join(command)}.*", printed, re.M), printed


def test_the_commands_are_the_promised_ones():
    assert set(main.commands) == set(COMMANDS)


def test_the_list_has_every_kind_of_name():
    rows = dict(line.split(maxsplit=1) for line in re.sub(r"(data|layer|losses,|earlier) ", r"\1-", works("list")).splitlines())
    cifar10 = ["mobilenetv2-cifar10", "resnet20-cifar10", "resnet56-cifar10", "vgg16-cifar10"]
    assert rows["teachers"] == ", ".join(sorted([*cifar10, "mobilenetv2-digits", "resnet8-digits", "vgg7-digits"]))
    assert rows["data-sets"] == "cifar10, digits, fashion-mnist, imagefolder:DIR, images:DIR, hf:NAME"
    assert (
        rows["agents"]
        == "a2c, allocation, amc, ars, cma-es, crossq, ddpg, dyna-ddpg, dyna-sac, dyna-td3, evolution, greedy, model, policy, ppo, "
        "random, reinforce, sac, stages, td3, tpe, tqc, uniform"
    )
    assert rows["earlier-systems"] == "amc, n2n"
    assert rows["rewards"] == "amc_error, amc_flops, eas, metric, n2n, relative"
    assert rows["losses,-classification"] == "dist, dkd, hinton, labels, mimic, standardised"
    assert rows["resources"] == "latency, macs, memory, params"
    assert (rows["rankings"], rows["tasks"]) == ("magnitude, reconstruction", "classification")
    assert {"Convolution", "Linear", "BatchNorm"} <= set(rows["layer-rules"].split(", "))


def python(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_help_imports_no_torch():
    done = python("-X", "importtime", "-m", "compress_env.cli", "--help")
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "torchvision", "stable_baselines3", "matplotlib", "sklearn", "onnxruntime"}


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    python("-m", "compress_env", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8  # 0.3 on an idle machine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words, begins, told", [
    ("search", "api.run_search", "What was done so far is kept; the same command with --resume goes on from there."),
    ("policy apply p.onnx", "api.run_search", "What was done so far is kept; the same command with --resume goes on from there."),
    ("finetune", "search.store.RunFolder", "What was done so far is kept; the same command goes on from there."),
    ("policy learn run", "search.store.RunFolder", "The same command begins again."),
    ("validate", "search.store.RunFolder", "The same command begins again."),
])  # fmt: skip
def test_what_is_interrupted_says_in_one_line_how_to_go_on(monkeypatch, tmp_path, words, begins, told, number):
    monkeypatch.setattr(f"compress_env.{begins}", lambda *_, **__: signal.raise_signal(number))
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        result = call(*words.split(), "--out", tmp_path / "a")
    finally:
        now = signal.signal(number, before)
    assert result.exit_code == 128 + number and result.output.strip().splitlines() == [f"Interrupted. {told}"]
    assert now == (signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def test_what_compiled_code_makes_of_ctrl_c_is_no_other_error(monkeypatch, tmp_path):
    def reads(*_, **__):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise compress_env.errors.UserError("the weights are damaged") from None

    monkeypatch.setattr("compress_env.api.run_search", reads)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert call("search", "--out", tmp_path / "a").exit_code == 143
    finally:
        signal.signal(signal.SIGTERM, before)


LOADS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import click
from compress_env.cli.commands import Command
@click.command(cls=Command)
def main():
    import outer
    time.sleep(20)
    print("not interrupted", outer.whole)
main()
"""


@pytest.mark.parametrize("otherwise", ["pass", "import other"])
def test_ctrl_c_during_an_import_is_not_swallowed(tmp_path, otherwise):
    """As by torch-pruning, which goes on without timm, or later fails of the half of it that is there."""
    (tmp_path / "outer.py").write_text(f"try:\n    import inner\nexcept:\n    {otherwise}\nwhole = True\n")
    (tmp_path / "inner.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nInterrupted. What was done so far is kept; the same command goes on from there.\n"


@pytest.mark.parametrize("module", ["compress_env", "compress_env.cli"])
def test_the_version_is_the_packages(module):
    done = python("-m", module, "--version")
    assert done.stdout.strip().endswith(f"version {compress_env.__version__}")
