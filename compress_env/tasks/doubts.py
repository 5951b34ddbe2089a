"""Do a teacher and its data belong together? What its outputs tell before any work is done, `doubts`, and after, `trained_on`."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from compress_env.tasks import Task

SHUFFLES = 16
"""Orders of the labels that chance is measured with."""
DEVIATIONS = 3.0
"""A metric is clearly better than chance if it is so many standard deviations above what shuffled labels give."""
SURE = 0.001
"""Probability by chance (Fisher's exact test) up to which a teacher is taken to know its validation examples."""
BETTER = 0.2
"""A teacher's classes are taken to be in another order if its accuracy is better by at least this in that, and twice as good."""
CHECK = "Check its weights (--weights), the order of its outputs, and the mean and deviation of its inputs (--mean, --std)"
FEW = 20
"""Examples below which no order is looked for."""


def doubts(task: Task, outputs: Tensor, labels: Tensor) -> str:
    """The reason to doubt that a teacher and its data belong together, or "".

    The metric is compared with that on shuffled labels, which says what chance is, whatever the task (a permutation test). Where
    labels are classes, another order of them is looked for on half of the examples, and tried on the others.

    Args:
        task: The meaning of the outputs.
        outputs: The teacher's outputs `(n, ...)`.
        labels: The labels `(n, ...)` of the same examples.
    """
    order = _other_order(outputs, labels)
    if order:
        return order
    found = task.metrics(outputs, labels)[task.metric]
    generator = torch.Generator().manual_seed(0)
    chance = [task.metrics(outputs, labels[torch.randperm(len(labels), generator=generator)])[task.metric] for _ in range(SHUFFLES)]
    if found > np.mean(chance) + DEVIATIONS * np.std(chance):
        return ""
    return f"which is not clearly better than chance ({np.mean(chance):.1%})"


def trained_on(task: Task, validation: float, test: float, validations: int, tests: int) -> str:
    """The reason to think that a teacher was trained on the validation examples, or "": it is better on them than chance explains.

    Args:
        task: Names the metric, a share of the examples.
        validation: The teacher's metric on validation examples.
        test: The same on test examples.
        validations: How many validation examples there are.
        tests: How many test examples.
    """
    from scipy.stats import fisher_exact  # importing it takes a second

    right = [(round(metric * count), count) for metric, count in ((validation, validations), (test, tests))]
    table = [[min(max(each, 0), count), count - min(max(each, 0), count)] for each, count in right]
    if fisher_exact(table, alternative="greater").pvalue > SURE:
        return ""
    return (
        f"{task.metric} {validation:.1%} on {validations} validation examples, but {test:.1%} on {tests} test examples. Check whether "
        "it was trained on the first: students are chosen on what it knows then; give others to choose on (--validation)"
    )


def _other_order(outputs: Tensor, labels: Tensor) -> str:
    """That the outputs fit the labels in another order of classes, with the first that are wrong; "" if not, or for another task."""
    if outputs.dim() != 2 or labels.dim() != 1 or labels.is_floating_point() or len(labels) < FEW:
        return ""
    answered = outputs.argmax(1).numpy()
    truth, count = labels.numpy(), outputs.shape[1]
    half = np.arange(len(truth)) % 2 == 0
    together = np.zeros((count, count))
    np.add.at(together, (truth[half], answered[half]), 1)
    order = linear_sum_assignment(together, maximize=True)[1]
    plain, other = np.mean(answered[~half] == truth[~half]), np.mean(answered[~half] == order[truth[~half]])
    most = np.bincount(truth[~half]).max() / (~half).sum()  # what one answer for all can have
    if other < max(plain + BETTER, 2 * plain, most + BETTER):
        return ""
    wrong = [f"{label} is its output {order[label]}" for label in np.unique(truth) if order[label] != label]
    some = ", ".join(wrong[:3]) + (" and so on" if len(wrong) > 3 else "")
    return (
        f"and would have {other:.0%} if the classes were in another order (label {some}); "
        "number labels in the order of its outputs: folders are in order of their names, such as 1, 10, 2"
    )
