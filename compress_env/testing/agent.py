"""`check_agent`: whether an agent proposes, learns and resumes as a search relies on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from compress_env.contexts import apart
from compress_env.envs.planted import LayerRemovalPlantedEnv, PlantedEvaluator
from compress_env.objective import Objective
from compress_env.search.agent import Agent, Policy, Proposal
from compress_env.search.recorder import Recorder
from compress_env.search.run import find_agent, search
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial
from compress_env.testing.require import calling, named, require

TOGETHER = 3
"""How many students are asked for at once."""


def planted() -> Objective:
    """The digits' ResNet-8 between 30 and 60 % of its MACs, with a formula in place of the evaluation: judging is free."""
    first = _planted()
    assert isinstance(first.evaluator, PlantedEvaluator)
    return Objective(first.spec, problem=first.problem, evaluator=first.evaluator.anew(), sensitivities=first.sensitivities)


@cache
def _planted() -> Objective:
    return LayerRemovalPlantedEnv.make_objective(False, budget={"macs": ["30%", "60%"]})


def check_agent(
    agent: str | Callable[..., Any], *, settings: Mapping[str, Any] | None = None, evaluations: int = 8,
    objective: Callable[[], Objective] = planted,
) -> None:  # fmt: skip
    """Check that an agent can be searched with.

    The same seed gives the same trials, as many as there are to be or fewer. A search that goes on after some recorded trials comes
    to those of an uninterrupted one. A learned policy answers the same observation with the same action. An agent that is asked and
    told gives at most as many proposals as it is asked for, each with an action in [-1, 1] for every step, and does not mind in which
    order it is told of several at once.

    Args:
        agent: A name, `module:factory`, or a factory.
        settings: Of the agent's own.
        evaluations: Of each search that is made, at least 4.
        objective: Makes a fresh objective, without what others have judged.

    Raises:
        AssertionError: Naming the agent and the fault.
    """
    name = named("agent", agent)
    factory, made = find_agent(agent, settings), []

    def keeping(*arguments: Any, **options: Any) -> Any:
        made.append(factory(*arguments, **options))
        return made[-1]

    def searched(out: Path | None = None) -> list[Trial]:
        return search(objective(), keeping, evaluations, 1, out, False, settings).trials

    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "whole", Path(folder) / "part"
        first = searched(whole)
        require(0 < len(first) <= evaluations, f"the {name} gave {len(first)} students instead of 1 to {evaluations}")
        require(_same(first, searched()), f"the {name} comes to other trials with the same seed")
        part.mkdir()
        for trial in first[: len(first) // 2]:
            RunFolder(part).append(trial)
        require(_same(first, searched(part)), f"the {name} comes to other trials after an interruption")
    if (policy := made[0].policy()) is not None:
        _check_policy(name, policy, objective())
    if isinstance(made[0], Agent):
        batches = [_batches(name, factory, settings, evaluations, objective(), order) for order in (1, -1)]
        require(
            batches[0] == batches[1],
            f"the {name} proposes something else if it is told of the same trials in another order",
        )


def _batches(
    name: str, factory: Callable[..., Any], settings: Mapping[str, Any] | None, evaluations: int, objective: Objective, order: int
) -> list[Any]:  # fmt: skip
    """The actions that an agent proposes, several at a time, if each batch is told in an order: 1 as asked, -1 the other way round."""
    recorder = Recorder(objective, evaluations, 1, None, tqdm(disable=True))
    proposed: list[Any] = []
    with apart():
        player = factory(objective, evaluations, 1, **(settings or {}))
        while recorder.left:
            n = min(TOGETHER, recorder.left)
            proposals = player.ask(n)
            require(len(proposals) <= n, f"the {name} was asked for {n} students and proposed {len(proposals)}")
            if not proposals:
                break
            for proposal in proposals:
                _check_proposal(name, proposal, objective)
                proposed.append(proposal.plan.to_json() if proposal.plan else np.asarray(proposal.actions).tolist())
            player.tell([recorder.play(proposal) for proposal in proposals][::order])
    return proposed


def _check_proposal(name: str, proposal: Proposal, objective: Objective) -> None:
    if proposal.plan is not None:
        graph = objective.problem.graph
        with calling(f"the plan that the {name} proposed"):
            graph.check(proposal.plan)
        canonical = graph.canonical(proposal.plan.switched, graph.widths(proposal.plan))
        require(proposal.plan == canonical, f"the {name} proposed a plan that `LayerGraph.canonical` makes another one of")
    else:
        actions, expected = np.asarray(proposal.actions), (objective.steps, 2)
        require(actions.shape == expected, f"the {name} proposed actions of shape {actions.shape} instead of {expected}")
        require(bool((np.abs(actions) <= 1).all()), f"the {name} proposed actions outside [-1, 1]")
    if proposal.limits is not None:
        known = set(objective.problem.cost_model.teacher)
        wrong = sorted(n for n, limit in proposal.limits.items() if n not in known or not limit > 0)
        require(not wrong, f"the {name} proposed limits on {', '.join(wrong)} that are no positive amounts of a resource")


def _check_policy(name: str, policy: Policy, objective: Objective) -> None:
    walk, seen = objective.begin(objective.budgets(2)[0]), []
    while not walk.done:
        observation = objective.observe(walk)
        action = np.array(policy(observation))
        require(action.shape == (2,), f"the policy of the {name} gave an action of shape {action.shape} instead of (2,)")
        require(bool(np.isfinite(action).all()), f"the policy of the {name} gave an action that is not finite")
        seen.append((observation, action))
        walk.step(*np.clip(action, -1, 1).tolist())
    again = [np.array_equal(policy(observation), action) for observation, action in reversed(seen)]
    require(all(again), f"the policy of the {name} answers the same observation with another action")


def _same(a: list[Trial], b: list[Trial]) -> bool:
    return len(a) == len(b) and all(x.same(y) for x, y in zip(a, b))

