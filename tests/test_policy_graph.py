"""A policy is a file of somebody else's: its graph is checked before it runs, and what it answers after."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress_env.agents.saved import load_policy
from compress_env.bench import zero_shot
from compress_env.errors import UserError
from compress_env.spec import ProblemSpec
from compress_env.walk.observation import entries

NAMES = ["a", "b", "c"]


def tensor(name, *values, dtype=np.float32):
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(*nodes, weights=(), inputs=None, outputs=None, opsets=(("", 20),), meta=None):
    """A graph from an observation to `action`; by default the sums of weights of two kinds."""
    nodes = nodes or (helper.make_node("MatMul", ["observation", "w"], ["action"]),)
    weights = weights or (numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w"),)
    inputs = inputs or [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [1, 3])]
    outputs = outputs or [helper.make_tensor_value_info("action", TensorProto.FLOAT, [1, 2])]
    graph = helper.make_graph(list(nodes), "policy", inputs, outputs, list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in opsets], ir_version=10)
    for key, value in (meta or {"observation": json.dumps(NAMES), "actions": "relative"}).items():
        made.metadata_props.add(key=key, value=value)
    return made


def saved(made, path):
    path.write_bytes(made.SerializeToString())
    return path


def test_a_small_network_is_run(tmp_path):
    path = saved(model(), tmp_path / "p.onnx")
    assert load_policy(path, NAMES, "relative")(np.array([1, 0, 2])).tolist() == [8, 11]


def branch():
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 2])
    return helper.make_graph([helper.make_node("Identity", ["w2"], ["o"])], "b", [], [out], [tensor("w2", [0, 0])])


def external():
    made = model()
    weights = made.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/passwd")
    return made


def doubled(times):
    names = ["observation", *(f"x{i}" for i in range(times))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=1) for a, b in zip(names, names[1:])]
    cut = [tensor(n, v, dtype=np.int64) for n, v in (("from", 0), ("to", 2), ("axis", 1))]
    return model(*nodes, helper.make_node("Slice", [names[-1], "from", "to", "axis"], ["action"]), weights=cut)


def with_function():
    made = model()
    own = helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 20)])
    made.functions.append(own)
    return made


IF = helper.make_node("If", ["c"], ["action"], then_branch=branch(), else_branch=branch())
BAD = {
    "an If": (lambda: model(IF, weights=[tensor("c", dtype=bool)]), "operator ONNX 'If'"),
    "randomness": (lambda: model(helper.make_node("RandomUniform", [], ["action"], shape=[1, 2])), "'RandomUniform'"),
    "its own domain": (lambda: model(helper.make_node("Evil", [], ["action"], domain="x.y"), opsets=(("", 20), ("x.y", 1))),
                       "needs the operators 'x.y'"),
    "a function": (with_function, "functions of its own"),
    "weights elsewhere": (external, "weights lie in another file"),
    "a bomb": (lambda: doubled(40), "'Concat' makes a tensor of"),
    "another input": (lambda: model(inputs=[helper.make_tensor_value_info("observation", TensorProto.FLOAT, [1, 4])]), "input"),
    "two outputs": (lambda: model(outputs=[helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("action", "b")]),
                    "one output 'action'"),
    "a free batch": (lambda: model(outputs=[helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", 2])]), "one output"),
    "no names": (lambda: model(meta={"x": "y"}), "'observation'"),
    "names that are none": (lambda: model(meta={"observation": "{\"a\": 1}", "actions": "relative"}), "no list of texts"),
    "broken edges": (lambda: model(helper.make_node("MatMul", ["observation", "nowhere"], ["action"])), "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_graph_that_is_no_small_network_is_refused_before_it_runs(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was run"))
    make, told = BAD[kind]
    with pytest.raises(UserError, match="is no policy of this package") as caught:
        load_policy(saved(make(), tmp_path / "p.onnx"))
    assert told in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_action_that_is_no_number_is_refused(tmp_path, value):
    path = saved(model(weights=[numpy_helper.from_array(np.full((3, 2), value, np.float32), "w")]), tmp_path / "p.onnx")
    policy = load_policy(path, NAMES, "relative")
    with pytest.raises(UserError, match="which is no number"):
        policy(np.ones(3))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", onnx.ModelProto().SerializeToString()])
def test_damaged_files_are_no_policies(tmp_path, content):
    (tmp_path / "p.onnx").write_bytes(content)
    with pytest.raises(UserError, match="is no policy"):
        load_policy(tmp_path / "p.onnx")


def test_rows_of_a_policy_are_made_again_when_there_is_another_file_in_its_place(tmp_path, monkeypatch):
    names = [name for name, _, _ in entries()]
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [1, len(names)])]
    meta = {"observation": json.dumps(names), "actions": "relative"}
    play, played = zero_shot.search, []

    def counted(objective, agent, *arguments, **further):
        played.append(agent)
        return play(objective, agent, *arguments, **further)

    def compared(seed: int, *budgets: float) -> dict[float, float]:
        """Rewards of the policy's own student by budget, also as they are shown later, and what had to be judged for them."""
        weights = [numpy_helper.from_array(np.random.default_rng(seed).normal(size=(len(names), 2)).astype(np.float32), "w")]
        path = saved(model(weights=weights, inputs=inputs, meta=meta), tmp_path / "p.onnx")
        played.clear()
        rows = zero_shot.compare([str(path)], ProblemSpec(), budgets, "model", 0, [], tmp_path / "out", progress=False)
        assert {*rows} == {r for r in zero_shot.load(tmp_path / "out")["resnet8-digits"] if r.budget in budgets}
        return {r.budget: r.reward for r in rows if r.kind == "policy"}

    monkeypatch.setattr(zero_shot, "search", counted)
    first = compared(1, 0.2, 0.5)
    assert played == 2 * ["uniform", "allocation", "policy", "policy"]
    assert compared(1, 0.2, 0.5) == first and played == []
    assert compared(2, 0.2)[0.2] != first[0.2] and played == ["policy", "policy"]
    assert [r.budget for r in zero_shot.load(tmp_path / "out")["resnet8-digits"] if r.kind == "policy"] == [0.2]
    assert compared(1, 0.2, 0.5) == first and played == 4 * ["policy"]


def test_rows_that_were_made_before_files_had_digests_are_shown(tmp_path):
    old = {"budget": 0.5, "kind": "policy", "which": "p.onnx", "metric": 0.9, "reward": 0.8, "teacher_metric": 1.0}
    lines = [{"teacher": "a"}, old, old | {"kind": "uniform", "which": "", "reward": 0.6}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = zero_shot.report(zero_shot.load(tmp_path))
    assert "0.600 | 0.800" in shown
