"""`Together`: the students of several episodes, judged at once."""

from __future__ import annotations

from collections.abc import Sequence

from compress_env.objective import Judged
from compress_env.search.executors import Executor, Task
from compress_env.search.recorder import Recorder
from compress_env.search.waiting import Queue
from compress_env.walk.base import AnyWalk


class Together:
    """Judges the students of several episodes at once, and records them in the order in which they are given.

    Args:
        recorder: Records them.
        executor: Judges them.

    Attributes:
        places: How many are judged at once.
    """

    def __init__(self, recorder: Recorder, executor: Executor):
        self.places = executor.places
        self._recorder, self._executor = recorder, executor

    def judge(self, walks: Sequence[AnyWalk]) -> list[Judged]:
        """The students of finished walks; those that the search has no evaluations left for are left out.

        Those that an earlier run has recorded are compared and not judged again, nor are those that it had judged before their turn.
        """
        recorder = self._recorder
        recorded = max(0, len(recorder.trials) - recorder.played)
        queue = Queue(recorder, self._executor)
        tasks = [Task(walk.removed, walk.widths, walk.limits) for walk in walks[: recorder.left]]
        for task in tasks[recorded:]:
            queue.add(task)
        queue.show()
        found = []
        for number, task in enumerate(tasks):
            again = number < recorded
            judged = recorder.objective.judge_plan(task.removed, task.widths, task.limits) if again else queue.first()
            recorder.record(judged)
            found.append(judged)
        return found
