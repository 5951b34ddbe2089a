"""`Recorder`: from judged students to trials, in memory and on the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from compress_env.errors import EveryStudentFailed, UserError
from compress_env.objective import Judged, Objective
from compress_env.problem import Problem
from compress_env.search.agent import Policy, Proposal
from compress_env.search.store import RunFolder
from compress_env.search.trial import Trial, best_trial, versions

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

    Attributes:
        trials: All that were recorded, those of an earlier run included.
        played: How many this search has come to.
    """

    def __init__(self, objective: Objective, evaluations: int, seed: int, folder: RunFolder | None, bar: tqdm):
        self.objective, self.evaluations, self.seed = objective, evaluations, seed
        self._folder, self._bar = folder, bar
        self.trials: list[Trial] = folder.trials() if folder else []
        if folder:
            check_problem(self.trials, objective.problem, folder)
        self.played = 0
        self._rng = np.random.default_rng(seed)
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
        self._expect()
        self._bar.update(episodes - self._bar.n)

    def play(self, proposal: Proposal) -> Trial:
        """The trial of a proposed student."""
        limits = self.objective.draw_limits(self._rng) if proposal.limits is None else proposal.limits
        if proposal.plan is not None:
            widths = self.objective.problem.graph.widths(proposal.plan)
            return self.record(self.objective.judge_plan(proposal.plan.switched, widths, limits))
        assert proposal.actions is not None
        walk = self.objective.begin(limits)
        for keep, sparsity in np.clip(proposal.actions, -1, 1).astype(np.float32).tolist():
            walk.step(keep, sparsity)
        return self.record(self.objective.judge(walk))

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
                    f"{trial.plan.to_json()}. Versions now: {versions()}; search again in another folder"
                )
            trial = before
            if before.evaluation.transient:
                self.objective.evaluator.forget(before.plan)
        else:
            self.trials.append(trial)
            if self._folder:
                self._folder.append(trial)
        self.played += 1
        self._expect()
        best = best_trial(self.trials[: self.played])
        self._bar.update()
        if best:
            name = self.objective.problem.task.metric
            self._bar.set_postfix_str(f"best {name} {best.evaluation.metric:.4f}")
        if fresh:
            self._give_up()
        return trial

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
