"""`Evaluator`: from a plan to its numbers, as cheaply as a search needs. The same plan, the same numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, fx

from compress_env import cache
from compress_env.contexts import one_thread
from compress_env.data import Split
from compress_env.distill.short import ShortDistillation, reinitialise
from compress_env.distill.train import AT_ONCE, predict
from compress_env.evaluation import Evaluation
from compress_env.failures import EvaluationFailed, Patience, failures, release_memory
from compress_env.problem import Problem
from compress_env.resources.base import Candidate
from compress_env.spec import EvaluatorSettings
from compress_env.surgery.layerwise import part_size
from compress_env.surgery.layout import channels_last, memory_format
from compress_env.surgery.plan import Plan
from compress_env.surgery.refit import Refit
from compress_env.tasks import agreement


class PlanEvaluator(Protocol):
    """Judges the plans of one problem; `Evaluator` does by running students."""

    def __call__(self, plan: Plan, built: Candidate | None = None) -> Evaluation:
        """The numbers of a plan; `built` is its student, if there is one already."""

    def known(self, plan: Plan) -> Evaluation | None:
        """The numbers of a plan that was judged before, or of which they were recorded; else None."""

    def remember(self, plan: Plan, evaluation: Evaluation) -> None:
        """Take the numbers of a plan as known, as from the records of an earlier run."""

    def forget(self, plan: Plan) -> None:
        """Have a plan that was judged not known any more."""


class Memory:
    """What is known of plans: no plan is judged twice."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self._known: dict[Plan, Evaluation] = {}

    def known(self, plan: Plan) -> Evaluation | None:
        """The numbers of a plan that was judged before, or of which they were recorded; else None."""
        return self._known.get(plan)

    def remember(self, plan: Plan, evaluation: Evaluation) -> None:
        """Take the numbers of a plan as known, as from the records of an earlier run: it is neither built nor judged again."""
        self._known[plan] = evaluation
        self.problem.cost_model.remember(plan, evaluation.usage, evaluation.teacher_usage)

    def forget(self, plan: Plan) -> None:
        """Have a plan that was judged not known any more: it will count as new."""
        self._known.pop(plan, None)


class Evaluator(Memory):
    """Judges students of one problem on validation images: built, refitted, distilled for a moment if asked for, and run.

    Everything that depends on the teacher alone is computed once, here. Larger networks are computed in bfloat16 where the
    processor has it.

    Args:
        problem: The problem; its data is loaded.
        settings: How students are judged.
        every_image: Whether to judge on the whole validation split, whatever the settings say: for the choice among a search's best.
        timeout: Seconds that an evaluation may take, 0 for no limit; a generous multiple of the first one's if None.

    Attributes:
        validation: The images that students are judged on, with the teacher's outputs for labels if they have none.
        teacher_outputs: The teacher's outputs `(images, ...)` on them.
        teacher_metrics: The task's metrics of these.
        at_once: How many images are run at once.
    """

    def __init__(self, problem: Problem, settings: EvaluatorSettings, every_image: bool = False, timeout: float | None = None):
        super().__init__(problem)
        self.patience = Patience(timeout)
        self.settings, self.task, data = settings, problem.task, problem.data
        loss = self.task.losses.get(settings.loss or self.task.loss)
        self.validation = data.validation.held() if every_image else data.validation_subset(settings.validation_images)
        teacher, device = problem.whole, problem.device
        self.bfloat16 = problem.bfloat16
        self.at_once = part_size(problem.graph, AT_ONCE, device)
        with one_thread(), channels_last(teacher):
            key = cache.content_key(teacher, self.validation.inputs[:], data.normalization, self.bfloat16, device.type)
            self.teacher_outputs = cache.tensors(
                "logits", key, lambda: {"": predict(teacher, data, self.validation, self.at_once, self.bfloat16)}, self._outputs
            )
            if not data.labelled:
                self.validation = Split(self.validation.inputs, self.teacher_outputs)
            self.teacher_metrics = self.task.metrics(self.teacher_outputs, self.validation.labels)
            inputs = data.calibration(settings.calibration_images).to(device)
            inputs = inputs.contiguous(memory_format=memory_format(teacher, inputs))
            self._refit = Refit(teacher, problem.graph, inputs, bfloat16=self.bfloat16)
            self._distil = settings.distill_steps and ShortDistillation(
                teacher, data, inputs, self.at_once, steps=settings.distill_steps, batch_size=settings.batch_size, lr=settings.lr,
                loss=loss, temperature=settings.temperature, bfloat16=self.bfloat16,
                answers=None if data.labelled else agreement.answers(self.task),
            )  # fmt: skip

    def anew(self) -> Evaluator:
        """One that shares everything that was computed of the teacher, and knows no plan yet."""
        other = copy(self)
        other._known = {}
        return other

    def _outputs(self, found: Mapping[str, Tensor]) -> Tensor:
        """The teacher's outputs as they are kept."""
        if len(found[""]) != len(self.validation):
            raise ValueError(f"outputs for {len(found[''])} images instead of {len(self.validation)}")
        return found[""]

    def prepare(self, student: fx.GraphModule, plan: Plan) -> None:
        """Refit `student` to the teacher, or give it new weights, and distil it for a moment, in place.

        Raises:
            EvaluationFailed: If it diverges.
        """
        with failures(), one_thread(), channels_last(student):
            if not self.settings.inherit:
                reinitialise(student)
            if self.settings.refit:
                self._refit(student, plan)
            if self._distil:
                self._distil(student)

    def prepared(self, plan: Plan) -> fx.GraphModule:
        """The very student that is judged: built, refitted and distilled for a moment; weights equal bit for bit.

        Raises:
            EvaluationFailed: If it diverges.
        """

        def make() -> fx.GraphModule:
            student = self.problem.student(plan)
            self.prepare(student, plan)
            return student

        return self.patience(make)

    def outputs(self, student: fx.GraphModule, plan: Plan) -> Tensor:
        """Outputs `(images, ...)` on the validation images of a fresh student, which is prepared in place.

        Raises:
            EvaluationFailed: If there are none, or they are not finite.
        """
        self.prepare(student, plan)
        with failures(), one_thread(), channels_last(student):
            outputs = predict(student, self.problem.data, self.validation, self.at_once, self.bfloat16)
        if not torch.isfinite(outputs).all():
            raise EvaluationFailed("the student's outputs are not finite")
        return outputs

    def __call__(self, plan: Plan, built: Candidate | None = None) -> Evaluation:
        """The numbers of a plan. A plan that is known is not built again.

        Where memory is short, one more attempt is made after what is not needed was given back.

        Args:
            plan: Any plan of the problem's graph.
            built: Its fresh student, if there is one already; it is used up.

        Returns:
            The evaluation. A student that cannot be evaluated has metrics of 0 and says why in `failed`. It is not known afterwards
            if the machine was the cause.

        Raises:
            InvalidPlan: If the plan is not one of the problem's graph.
        """
        if (known := self.known(plan)) is not None:
            return known
        began = time.perf_counter()
        found = self._judged(plan, built)
        if found is None:
            del built
            release_memory()
            found = self._judged(plan, None, last=True)
        assert found is not None
        found = replace(found, seconds=round(time.perf_counter() - began, 4))
        if not found.transient:
            self._known[plan] = found
        return found

    def _judged(self, plan: Plan, built: Candidate | None, last: bool = False) -> Evaluation | None:
        """The numbers of a plan, or None if memory was short and this is not the last attempt."""
        usage = built and built.usage

        def judge() -> tuple[Mapping[str, float], float]:
            nonlocal usage
            fresh = built or self.problem.built(plan)
            usage = fresh.usage
            outputs = self.outputs(fresh.student.to(self.problem.device), plan)
            metrics = self.task.metrics(outputs, self.validation.labels)
            kl = self.task.divergence(outputs, self.teacher_outputs)
            if not all(map(math.isfinite, (kl, *metrics.values()))):
                raise EvaluationFailed(f"the student's numbers are not finite: KL {kl}, {dict(metrics)}")
            return metrics, kl

        teacher = self.teacher_metrics, dict(self.problem.cost_model.teacher)
        try:
            metrics, kl = self.patience(judge)
            assert usage is not None
            return Evaluation(metrics, kl, usage, *teacher)
        except EvaluationFailed as error:
            if error.out_of_memory and not last:
                return None
            return self.failed(plan, str(error), error.transient, usage)

    def failed(self, plan: Plan, reason: str, transient: bool, usage: Mapping[str, float] | None = None) -> Evaluation:
        """The numbers of a student that has none.

        Args:
            plan: Its plan.
            reason: Why, in one line.
            transient: Whether the machine was the cause.
            usage: What was counted on it; predicted if None.
        """
        nothing = dict.fromkeys(self.teacher_metrics, 0.0)
        teacher = self.teacher_metrics, dict(self.problem.cost_model.teacher)
        return Evaluation(nothing, None, usage or self._predicted(plan), *teacher, reason, transient=transient)

    def _predicted(self, plan: Plan) -> dict[str, float]:
        """Usage of a student that cannot be counted; the teacher's if it cannot be predicted either."""
        try:
            with failures():
                return self.problem.cost_model.predict_all(plan.switched, self.problem.graph.widths(plan))
        except EvaluationFailed:
            return dict(self.problem.cost_model.teacher)
