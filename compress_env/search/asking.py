"""The loop of agents that are asked for students and told of them, with several students judged at once."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from compress_env.search.agent import Agent, Proposal
from compress_env.search.asked import AskedState
from compress_env.search.executors import Executor
from compress_env.search.recorder import Recorder
from compress_env.search.waiting import Queue


class Asked(NamedTuple):
    """A student that was asked for and not told of.

    Attributes:
        proposal: As the agent gave it.
        limits: Its limits, in each resource's unit.
        recorded: Whether an earlier run has recorded it, so that it is not judged.
    """

    proposal: Proposal
    limits: dict[str, float]
    recorded: bool


def ask_and_tell(player: Agent, recorder: Recorder, executor: Executor, state: AskedState) -> None:
    """Ask for students until there are enough, have them judged, and tell of them in the order in which they were asked for.

    With n places, the student number k is asked for when those up to k - n have been told, whichever are judged first: so the trials
    depend on n and on the seed alone, and those of an agent that does not learn on the seed alone.
    """
    asked: deque[Asked] = deque()
    queue = Queue(recorder, executor)
    state.restore()
    while True:
        while len(asked) < executor.places and len(asked) < recorder.left:
            proposals = player.ask(1)
            if not proposals:
                break
            for proposal in proposals:
                limits = recorder.limits_of(proposal)
                recorded = recorder.played + len(asked) < len(recorder.trials)
                if not recorded:
                    queue.add(recorder.task(proposal, limits))
                asked.append(Asked(proposal, limits, recorded))
        queue.show()
        if not asked:
            state.save(now=True)
            return
        proposal, limits, recorded = asked[0]
        trial = recorder.again(proposal, limits) if recorded else recorder.record(queue.first())
        asked.popleft()
        player.tell([trial])
        if not asked:
            state.save()
