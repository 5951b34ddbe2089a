"""A layer of one's own, with weights that the surgery knows nothing of, and the rule that lets it shrink.

It is a gated linear unit: of two matrices, one says how much of the other's result passes. Without a rule it stays as it is.
You will see the network at shares of its width, and how many digits it still knows after a refit. CPU, about 5 seconds.
"""

import torch
from torch import nn

from compress_env.data import load_data
from compress_env.surgery.build import build_student
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.surgery.rules import Dense, Geometry, register_rule
from compress_env.surgery.trace import trace


class GatedLinear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.value, self.gate = (nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5) for _ in range(2))

    def forward(self, x):
        return nn.functional.linear(x, self.value) * nn.functional.linear(x, self.gate).sigmoid()


class GatedLinearRule(Dense):  # a layer that reads the channels before it and makes others, like `nn.Linear`
    weights, channel_axis = ("value", "gate"), lambda self: -1  # channels are the last axis

    def geometry(self, module, channels):
        return Geometry("gated", *module.value.shape[::-1])

    def axes(self, module, name, value):
        return ("out", "in")  # over these each parameter's axes run: so it is counted, ranked and cut


def main():
    torch.manual_seed(0)
    x, y = (digits := load_data("digits").train).inputs / 255, digits.labels
    teacher = nn.Sequential(nn.Flatten(), GatedLinear(64, 96), GatedLinear(96, 64), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(teacher.parameters(), 0.01)
    for _ in range(100):
        teacher.zero_grad()
        nn.functional.cross_entropy(teacher(x), y).backward()
        optimizer.step()
    print(f"without a rule, groups of channels that can shrink: {len(trace(teacher, x[:2]).groups)}")
    register_rule(GatedLinear)(GatedLinearRule)
    graph = trace(teacher, x[:2])
    print(f"with it: {len(graph.groups)}\n{'width':>5} {'parameters':>11} {'MACs':>8} {'accuracy':>9}")
    costs, refit = graph.view(frozenset()), Refit(build_student(teacher, graph, Plan()), graph, x[:256])
    for share in (1.0, 0.5, 0.25, 0.1):
        plan = graph.canonical(frozenset(), widths := graph.allowed(share * graph.full))
        refit(student := build_student(teacher, graph, plan), plan)
        used = f"{costs.parameters(widths):11,.0f} {costs.macs(widths):8,.0f}"
        print(f"{share:5.0%} {used} {(student(x).argmax(1) == y).float().mean():9.2%}")


if __name__ == "__main__":
    main()
