"""From a problem to a student without Gymnasium: a plan of one's own, judged, within a budget, and replayed.

You will see what a plan saves and what it costs in accuracy, and that the very same student is built again from the settings and
the plan alone. Digits, CPU, about 5 seconds.
"""

import json

import torch

from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.plan import Plan


def main():
    problem = Problem.build(ProblemSpec("resnet8-digits"))
    evaluator = Evaluator(problem, EvaluatorSettings())
    plan = Plan.of(removed=["stages.1.0"], widths={"conv1": 12, "stages.2.0.conv1": 40})
    found = evaluator(plan)
    print(f"{'':9} {'teacher':>9} {'student':>9}")
    for name, used in found.usage.items():
        print(f"{name:9} {found.teacher_usage[name]:9,.0f} {used:9,.0f}")
    print(f"accuracy  {found.teacher_metric:9.2%} {found.metric:9.2%}   KL {found.kl:.3f} nats")

    written = json.dumps([problem.spec.to_json(), plan.to_json()])  # another day, another process
    spec, text = json.loads(written)
    again = Problem.build(ProblemSpec.from_json(spec))
    student = Evaluator(again, EvaluatorSettings()).prepared(Plan.from_json(text))
    before = evaluator.prepared(plan).state_dict()
    same = all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    print(f"built again: {sum(p.numel() for p in student.parameters()):,} parameters, equal to the last bit: {same}")


if __name__ == "__main__":
    main()
