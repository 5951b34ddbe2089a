"""`Recorder`: from judged students to trials, in memory and on the disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from compress_env.errors import EveryStudentFailed, UserError
from compress_env.evaluation import Evaluation
from compress_env.objective import Judged, Objective
from compress_env.problem import Problem
from compress_env.search.agent import Policy, Proposal
from compress_env.search.callbacks import Callbacks
from compress_env.search.executors import Outcome, Task
from compress_env.search.store import Ahead, RunFolder
from compress_env.search.trial import Trial, best_trial, versions
from compress_env.surgery.plan import Plan

CHECKED = 3
"""Recorded trials of a search that is resumed are proposed again, and so many of the first and of the last are compared."""
HOPELESS = 10
"""Students that fail one after the other and end a search, if none before them could be evaluated or the machine is the cause."""


class Recorder:
    """Turns judged students into trials. Those that a resumed run had recorded are checked, not written again.

    Args:
        objective: The objective; recorded plans are known to its evaluator from now on.
        evaluations: How many there are to be.
        seed: Of the search.
        folder: Where trials are kept, or None.
        bar: Shows how far the search is.
        callbacks: Told of each trial that was not recorded before.

    Attributes:
        trials: All that were recorded, those of an earlier run included.
        played: How many this search has come to.
        rng: Draws the limits of proposals that have none.
        measures: Whether plans depend on what is measured, so that equal proposals may lead to different ones.
    """

    def __init__(
        self, objective: Objective, evaluations: int, seed: int, folder: RunFolder | None, bar: tqdm,
        callbacks: Callbacks | None = None,
    ):  # fmt: skip
        self.objective, self.evaluations, self.seed = objective, evaluations, seed
        self._folder, self._bar, self._callbacks = folder, bar, callbacks
        self._busy = ""
        self.trials: list[Trial] = folder.trials() if folder else []
        if folder:
            check_problem(self.trials, objective.problem, folder)
        self.played = 0
        self._best: Trial | None = None
        self.measures = any(name in objective.problem.cost_model.measured for name in objective.limited)
        self._ahead = folder.ahead(objective.problem) if folder else {}
        self.rng = np.random.default_rng(seed)
        self._start = time.perf_counter()
        for trial in self.trials:
            if not trial.evaluation.transient:
                objective.evaluator.remember(trial.plan, trial.evaluation)
        self._expect()

    @property
    def left(self) -> int:
        """How many students are left to judge."""
        return self.evaluations - self.played

    def skip(self, episodes: int) -> None:
        """Go on after this many recorded trials, as an agent does that restores a checkpoint."""
        self.played = episodes
        self._best = best_trial(self.trials[:episodes])
        self._expect()
        self._bar.update(episodes - self._bar.n)

    def limits_of(self, proposal: Proposal) -> dict[str, float]:
        """The limits of a proposed student, drawn if it has none; called once for each, in the order of the proposals."""
        return self.objective.draw_limits(self.rng) if proposal.limits is None else dict(proposal.limits)

    def task(self, proposal: Proposal, limits: Mapping[str, float]) -> Task:
        """What is to be judged of a proposed student."""
        if proposal.plan is not None:
            return Task(proposal.plan.switched, self.objective.problem.graph.widths(proposal.plan), limits)
        assert proposal.actions is not None
        walk = self.objective.begin(limits)
        for keep, sparsity in np.clip(proposal.actions, -1, 1).astype(np.float32).tolist():
            walk.step(keep, sparsity)
        return Task(walk.removed, walk.widths, walk.limits)

    def play(self, proposal: Proposal) -> Trial:
        """The trial of a proposed student, judged in this process."""
        task = self.task(proposal, self.limits_of(proposal))
        return self.record(self.objective.judge_plan(task.removed, task.widths, task.limits))

    def again(self, proposal: Proposal, limits: Mapping[str, float]) -> Trial:
        """The recorded trial of a proposed student; what was proposed is compared with the first and the last ones."""
        if CHECKED <= self.played < len(self.trials) - CHECKED:
            trial = self.trials[self.played]
            if trial.evaluation.transient:
                self.objective.evaluator.forget(trial.plan)
            self._count()
            return trial
        task = self.task(proposal, limits)
        return self.record(self.objective.judge_plan(task.removed, task.widths, task.limits))

    def known(self, plan: Plan) -> Evaluation | None:
        """The numbers of a plan, if it was judged: in this search, or before it was its turn in one that was interrupted."""
        return self.objective.evaluator.known(plan) or self._ahead.get(plan)

    def keep(self, outcome: Outcome) -> None:
        """Note a student that was judged before its turn, so that an interruption does not lose it."""
        if self._folder and not outcome.evaluation.transient:
            self._folder.append_ahead(Ahead.of(self.objective.problem, outcome.plan, outcome.evaluation))

    def record(self, judged: Judged) -> Trial:
        """The trial of a judged student, appended to the folder unless it is there."""
        now = time.perf_counter()
        trial = make_trial(self.played, self.seed, judged, self.objective, now - self._start)
        self._start = now
        fresh = self.played == len(self.trials)
        if not fresh:
            before = self.trials[self.played]
            assert self._folder is not None  # which they were read from
            if before.plan != trial.plan:
                raise UserError(
                    f"trial {self.played} of {self._folder.path} cannot be reproduced: it was {before.plan.to_json()}, now "
                    f"{trial.plan.to_json()}. Agents that learn propose other students with another number of workers. Versions now: "
                    f"{versions()}; search again in another folder"
                )
            trial = before
            if before.evaluation.transient:
                self.objective.evaluator.forget(before.plan)
        else:
            self.trials.append(trial)
            if self._folder:
                self._folder.append(trial)
        self._count()
        if fresh:
            if self._callbacks:
                self._callbacks.recorded(trial, trial is self._best)
            self._give_up()
        return trial

    def _count(self) -> None:
        """One more is played."""
        self._best = best_trial([*([self._best] if self._best else []), self.trials[self.played]])
        self.played += 1
        self._expect()
        self._show(refresh=False)
        self._bar.update()

    def busy(self, places: int, workers: int) -> None:
        """Show how many of several workers are judging a student, if any is."""
        busy = f"{places} of {workers} workers busy" if places and workers > 1 else ""
        if busy != self._busy:
            self._busy = busy
            self._show()

    def _show(self, refresh: bool = True) -> None:
        best = f"best {self.objective.problem.task.metric} {self._best.evaluation.metric:.4f}" if self._best else ""
        if self._busy or best:
            self._bar.set_postfix_str(", ".join(filter(None, (best, self._busy))), refresh)

    def _expect(self) -> None:
        """Have the next recorded trial found as it was, also where its student failed because of the machine."""
        if self.played < len(self.trials):
            trial = self.trials[self.played]
            self.objective.evaluator.remember(trial.plan, trial.evaluation)

    def _give_up(self) -> None:
        """End a search in which nothing can be evaluated, or nothing any more."""
        last = [t.evaluation for t in self.trials if not t.repeated][-HOPELESS:]
        broken = len(last) == HOPELESS and all(e.failed and e.transient for e in last)
        nothing = self.played >= HOPELESS and all(t.evaluation.failed for t in self.trials)
        if broken or nothing:
            which = f"first {self.played}" if nothing else f"last {HOPELESS}"
            cure = "the network fails once it is changed; mend it first"
            if broken:
                cure = "see to the machine, or give more --timeout, and go on with --resume"
            raise EveryStudentFailed(
                f"the search stops: none of the {which} students could be evaluated ({last[-1].failed}); {cure}"
            )


def check_problem(trials: Sequence[Trial], problem: Problem, folder: RunFolder) -> None:
    """Check that trials are of this problem and ranking.

    Raises:
        UserError: If they are not; the weights or the data have changed since, or another object was given.
    """
    ids = (problem.id, problem.ranking.id)
    for trial in trials:
        if (trial.problem, trial.ranking) != ids:
            raise UserError(
                f"trial {trial.index} of {folder.path} was recorded for another problem: the teacher's weights, its code, the data or "
                "the ranking of channels have changed since; restore them, or search again in another folder"
            )


def make_trial(index: int, seed: int, judged: Judged, objective: Objective, seconds: float) -> Trial:
    """The trial of a judged student."""
    problem = objective.problem
    return Trial(
        index, judged.plan, judged.evaluation, judged.limits, judged.reward, judged.terms, judged.repeated, seed, round(seconds, 3),
        problem.id, problem.ranking.id,
    )  # fmt: skip


def trial_of_policy(policy: Policy, objective: Objective, seed: int) -> Trial:
    """The student that a policy proposes without exploration; it is not recorded."""
    start = time.perf_counter()
    walk = objective.begin(objective.draw_limits(np.random.default_rng(seed)))
    while not walk.done:
        keep, sparsity = np.clip(policy(objective.observe(walk)), -1, 1).tolist()
        walk.step(keep, sparsity)
    return make_trial(-1, seed, objective.judge(walk), objective, time.perf_counter() - start)
