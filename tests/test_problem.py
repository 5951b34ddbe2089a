"""The problem is all that is known before a student is judged; a recorded plan replays through it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from compress_env import evaluator as evaluator_module
from compress_env import problem as problem_module
from compress_env.allocation.allocator import Allocator
from compress_env.allocation.completion import Completed
from compress_env.errors import UserError
from compress_env.evaluator import Evaluator
from compress_env.objective import Objective
from compress_env.problem import Measured, Problem
from compress_env.resources import RESOURCES
from compress_env.resources.base import Resource
from compress_env.spec import EnvironmentSpec, EvaluatorSettings, ProblemSpec, SearchSpec, keywords
from compress_env.surgery.plan import Plan
from compress_env.walk.observation import Embedding, entries
from compress_env.walk.walk import Walk

PLACE = {name: i for i, (name, _, _) in enumerate(entries())}
QUICK = EvaluatorSettings(calibration_images=64, validation_images=100)
PLAN = Plan.of(["stages.1.0"], {"conv1": 12, "stages.2.0.conv1": 40})


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.build(ProblemSpec("resnet8-digits"))


def test_settings_are_json_and_come_back_equal():
    spec = EnvironmentSpec.of_keywords(
        teacher="vgg7-digits", budget={"macs": ["20%", 0.5], "latency": "2ms"}, mean=[0.5], std=(0.25,), evaluator={"lr": 0.01},
        protect=["0"], constraint="soft",
    )  # fmt: skip
    again = EnvironmentSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and again.problem.resources == ("latency",) and again.problem.normalization == ((0.5,), (0.25,))
    assert hash(again.problem) == hash(spec.problem)
    search = SearchSpec("sac", {"tau": 0.1}, 20, 3)
    assert SearchSpec.from_json(json.loads(json.dumps(search.to_json()))) == search


def test_an_object_is_marked_in_json_and_named_when_it_is_missing():
    spec = ProblemSpec(nn.Linear(2, 2), data=([1], [2]))
    data = json.loads(json.dumps(spec.to_json()))
    assert data["teacher"] == {"python object": "Linear"}
    with pytest.raises(UserError, match=r"the teacher of this run was a Python object \(Linear\).*resume=True"):
        ProblemSpec.from_json(data)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"techer": "x"}, "did you mean 'teacher'"),
        ({"schedule": "joined"}, "did you mean 'joint'"),
        ({"runtime": "onnx"}, "did you mean 'onnxruntime'"),
        ({"latency_batch": 0}, "latency_batch has to be a whole number of at least 1, got 0"),
        ({"mean": (0.5,)}, "given together"),
        ({"protect": "conv1"}, r"protect has to be a sequence, got the text 'conv1'; give \['conv1'\]"),
        ({"evaluator": {"steps": 3}}, "evaluator: no argument 'steps'"),
        ({"budget": 0.5}, "a budget is a mapping"),
        ({"evaluator": 5}, "evaluator has to be a mapping"),
        ({"evaluator": {"validation_images": 0}}, "evaluator: validation_images has to be a whole number of at least 1, got 0"),
        ({"evaluator": {"calibration_images": 2.5}}, "evaluator: calibration_images has to be a whole number of at least 1, got 2.5"),
        ({"min_width": 1.5}, "min_width has to be a number from 0 to 1, got 1.5"),
        ({"shaping": 2}, "shaping has to be True or False, got 2"),
        ({"timeout": -1}, "timeout has to be a number from 0 to 100,000,000, got -1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(given, message):
    with pytest.raises(UserError, match=message):
        EnvironmentSpec.of_keywords(**given)


@pytest.mark.parametrize("evaluations", ["12", None, 2.5, True, 0])
def test_a_number_of_evaluations_is_a_whole_number(evaluations):
    with pytest.raises(UserError, match="evaluations has to be a whole number of at least 1"):
        SearchSpec(evaluations=evaluations)


def test_the_environment_shows_every_keyword_with_its_default():
    import inspect

    from compress_env.envs.layer_removal import LayerRemovalEnv

    shown = inspect.signature(LayerRemovalEnv).parameters
    assert {n: p.default for n, p in shown.items() if n not in ("render_mode", "progress")} == keywords()


def test_the_empty_plan_is_the_teacher_bit_for_bit_and_the_teacher_stays(problem):
    x = problem.data.prepare(problem.data.test.inputs[:50])
    before = {k: v.clone() for k, v in problem.teacher.module.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(problem.student(Plan())(x), problem.teacher.module(x))
    Evaluator(problem, QUICK)(PLAN)
    assert all(torch.equal(v, before[k]) for k, v in problem.teacher.module.state_dict().items())


def test_settings_and_plan_alone_build_the_very_student_that_was_judged(problem, monkeypatch):
    judged = []
    real = evaluator_module.predict
    monkeypatch.setattr(evaluator_module, "predict", lambda m, *a, **k: judged.append(m) or real(m, *a, **k))
    evaluation = Evaluator(problem, QUICK)(PLAN)
    monkeypatch.undo()
    spec, text = json.loads(json.dumps([problem.spec.to_json(), PLAN.to_json()]))
    again = Problem.build(ProblemSpec.from_json(spec))
    student = Evaluator(again, QUICK).prepared(Plan.from_json(text)).state_dict()
    expected = judged[-1].state_dict()
    assert student.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in student.items())
    assert again.id == problem.id and again.ranking.id == problem.ranking.id
    assert Evaluator(again, QUICK)(PLAN) == evaluation


def test_a_plan_that_is_known_is_neither_built_nor_judged_again(problem, monkeypatch):
    evaluator = Evaluator(problem, QUICK)
    found = evaluator(PLAN)
    for owner, name in ((problem_module, "build_student"), (evaluator_module, "predict")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it is known"))
    assert evaluator(PLAN) is found


def test_ids_tell_problems_and_rankings_apart(problem):
    other = {
        "weights ranked": Problem.build(ProblemSpec("resnet8-digits", ranking="magnitude")),
        "scope": Problem.build(ProblemSpec("resnet8-digits", protect=("conv1",))),
        "schedule": Problem.build(ProblemSpec("resnet8-digits", schedule="joint")),
    }
    assert other["weights ranked"].id == problem.id and other["weights ranked"].ranking.id != problem.ranking.id
    assert len({problem.id, other["scope"].id, other["schedule"].id}) == 3
    changed = Problem.build(ProblemSpec("resnet8-digits"))
    with torch.no_grad():
        next(changed.teacher.module.parameters()).mul_(1.01)
    assert changed.id != problem.id


def test_which_channels_stay_is_the_rankings_doing_alone(problem):
    weights = Problem.build(ProblemSpec("resnet8-digits", ranking="magnitude"))
    by_images, by_weights = (p.student(PLAN).state_dict()["stages.2.0.conv1.weight"] for p in (problem, weights))
    assert by_images.shape == by_weights.shape and not torch.equal(by_images, by_weights)
    kept = np.flatnonzero(problem.graph.groups["stages.2.0.conv1"].kept(40))
    assert set(kept) == set(problem.ranking.orders["stages.2.0.conv1"][:40].tolist())


def test_a_problem_is_made_again_without_its_data(problem):
    measured = Measured.from_json(json.loads(json.dumps(problem.measured.to_json())))
    spec = ProblemSpec("resnet8-digits", data="imagefolder:/there/is/no/such/folder")
    again = Problem.build(spec, measured=measured)
    known = Objective(EnvironmentSpec(problem.spec), problem=problem).sensitivities
    allocators = [Allocator(p, known) for p in (problem, again)]
    limits = {"macs": 0.3 * problem.cost_model.teacher["macs"]}
    walks = [Walk(p, limits) for p in (problem, again)]
    embeddings, plans = [Embedding(a.problem, a) for a in allocators], [a.reference(limits).allocation for a in allocators]
    while not walks[0].done:
        done = [Completed.of(walk.completed(plan), a) for walk, plan, a in zip(walks, plans, allocators)]
        seen = [embedding(*each) for embedding, *each in zip(embeddings, walks, done, plans)]
        assert np.array_equal(*seen) and seen[0][PLACE["loss alone"]] > 0
        for walk in walks:
            walk.step(-0.5, 0.3)
    assert again.ranking.id == problem.ranking.id and again.cost_model.teacher == problem.cost_model.teacher
    with pytest.raises(UserError, match="such"):
        again.data  # noqa: B018 - it is loaded now


def test_a_problem_needs_data_only_where_its_ranking_does(monkeypatch):
    monkeypatch.setattr(problem_module, "data_of", lambda *_, **__: pytest.fail("no data is needed"))
    found = Problem.build(ProblemSpec("resnet8-digits", ranking="magnitude"))
    assert found.built(Plan()).usage == found.cost_model.teacher
    with pytest.raises(UserError, match="give data or an input shape, not both"):
        Problem.build(ProblemSpec("resnet8-digits", ranking="magnitude", data="digits", input_shape=(1, 8, 8)))


def test_an_input_shape_is_refused_where_the_ranking_looks_at_images():
    with pytest.raises(UserError, match="the ranking 'reconstruction' looks at images"):
        Problem.build(ProblemSpec("resnet8-digits", input_shape=(1, 8, 8)))


def test_observations_grow_with_the_budgets_resources_only(problem):
    class Depth(Resource):
        unit = "layers"

        def predict(self, view, widths):
            return float(len(view.layers))

        def count(self, student, example):
            return float(sum(bool(list(m.parameters(recurse=False))) for m in student.modules()))

    before = tuple(name for name, _, _ in entries())
    RESOURCES.register("depth-of-a-test")(Depth)
    try:
        again = Objective(EnvironmentSpec.of_keywords(), problem=problem)
        assert again.embedding.names == before
        asked = Objective(EnvironmentSpec.of_keywords(budget={"macs": 0.5, "depth-of-a-test": 12}))
        assert set(asked.embedding.names) - set(before) == {"budget depth-of-a-test", "spent depth-of-a-test"}
        walk = asked.begin(asked.budgets(1)[0])
        while not walk.done:
            assert asked.observe(walk).shape == asked.embedding.low.shape
            walk.step(1.0, 0.0)
        assert asked.judge(walk).evaluation.usage["depth-of-a-test"] <= 12
    finally:
        del RESOURCES._entries["depth-of-a-test"]


def test_a_user_error_comes_before_the_teacher_is_loaded(monkeypatch):
    monkeypatch.setattr(problem_module, "load_teacher", lambda *_: pytest.fail("too late"))
    wrong = {"budget": {"mac": 0.5}, "reward": "n2m", "task": "classificatio", "ranking": "magnitud", "evaluator": {"loss": "hintn"}}
    for name, value in wrong.items():
        with pytest.raises(UserError, match="did you mean"):
            Objective(EnvironmentSpec.of_keywords(**{name: value}))
