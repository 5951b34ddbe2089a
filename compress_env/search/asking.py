"""The loop of agents that are asked for students and told of them, with several students judged at once."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from compress_env.search.agent import Agent, Proposal
from compress_env.search.executors import Executor, Outcome
from compress_env.search.recorder import Recorder
from compress_env.surgery.plan import Plan


@dataclass(eq=False)
class Waiting:
    """A student that was asked for and not told of.

    Attributes:
        proposal: As the agent gave it.
        limits: Its limits, in each resource's unit.
        plan: Its plan, if it was not recorded already.
        future: Its numbers, once it is judged; None if it is recorded already.
        kept: Whether they are on the disk.
    """

    proposal: Proposal
    limits: dict[str, float]
    plan: Plan | None = None
    future: Future[Outcome] | None = None
    kept: bool = False

    @property
    def outcome(self) -> Outcome:
        """Its numbers; waits for them."""
        assert self.future is not None
        return self.future.result()


def ask_and_tell(player: Agent, recorder: Recorder, executor: Executor) -> None:
    """Ask for students until there are enough, have them judged, and tell of them in the order in which they were asked for.

    With n places, the student number k is asked for when those up to k - n have been told, whichever are judged first: so the trials
    depend on n and on the seed alone, and those of an agent that does not learn on the seed alone. What is judged before its turn is
    kept on the disk until then.
    """
    waiting: deque[Waiting] = deque()
    while True:
        while len(waiting) < executor.places and len(waiting) < recorder.left:
            proposals = player.ask(1)
            if not proposals:
                break
            waiting += [_submitted(each, recorder, executor, waiting) for each in proposals]
        _show(waiting, recorder, executor)
        if not waiting:
            return
        first = waiting[0]
        if first.future is None:
            trial = recorder.again(first.proposal, first.limits)
        else:
            _wait_for(first, waiting, recorder, executor)
            outcome = first.outcome
            trial = recorder.record(recorder.objective.judged(outcome.plan, outcome.evaluation, first.limits, outcome.repeated))
        waiting.popleft()
        player.tell([trial])


def _submitted(proposal: Proposal, recorder: Recorder, executor: Executor, waiting: deque[Waiting]) -> Waiting:
    limits = recorder.limits_of(proposal)
    if recorder.played + len(waiting) < len(recorder.trials):
        return Waiting(proposal, limits)
    task = recorder.task(proposal, limits)
    plan = recorder.objective.problem.graph.canonical(task.removed, task.widths)
    known = None if recorder.measures else recorder.known(plan)
    if known is not None:
        return Waiting(proposal, limits, plan, _done(Outcome(plan, known)), kept=True)
    for other in waiting:
        if other.future and other.plan == plan and other.limits == limits and not recorder.measures:
            return Waiting(proposal, limits, plan, other.future, kept=True)
    return Waiting(proposal, limits, plan, executor.submit(task))


def _wait_for(first: Waiting, waiting: deque[Waiting], recorder: Recorder, executor: Executor) -> None:
    """Until the first is judged, note what is judged before it."""
    while True:
        for each in waiting:
            if each is not first and not each.kept and each.future and each.future.done() and not each.future.exception():
                recorder.keep(each.outcome)
                each.kept = True
        assert first.future is not None
        if first.future.done():
            return
        wait([each.future for each in waiting if each.future and not each.future.done()], return_when=FIRST_COMPLETED)
        _show(waiting, recorder, executor)


def _show(waiting: deque[Waiting], recorder: Recorder, executor: Executor) -> None:
    recorder.busy(len({each.future for each in waiting if each.future and not each.future.done()}), executor.places)


def _done(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future
