"""Distillation losses: functions `(student, teacher, labels, temperature) -> loss`.

Everywhere, student and teacher are logits `(n, classes)`, labels are the numbers of the right classes `(n,)`, the temperature T is
above 0, the label weight w in [0, 1] is that of the cross-entropy with the labels, and the loss is a scalar, the mean over examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.nn import functional as F

from compress_env.registry import Registry

LOSSES = Registry("loss")
"""The losses by name."""

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def at_rate(share: float) -> Callable[[Loss], Loss]:
    """A decorator for a loss that is best at this share of the learning rate which is chosen for others."""

    def mark(loss: Loss) -> Loss:
        loss.rate = share  # type: ignore[attr-defined]
        return loss

    return mark


@LOSSES.register("hinton")
def hinton(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, label_weight: float = 0.1) -> Tensor:
    """(1 - w) T^2 KL(teacher || student) at temperature T, plus w times the cross-entropy with the labels.

    The factor T^2 keeps the gradient of the soft part in proportion when T changes. Hinton, Vinyals, Dean: Distilling the knowledge in
    a neural network, 2015.
    """
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - label_weight) * temperature**2 * soft + label_weight * F.cross_entropy(student, labels)


@LOSSES.register("dkd")
def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, label_weight: float = 1.0) -> Tensor:
    """T^2 (KL of the right class against the rest + 8 KL among the other classes), plus w times the cross-entropy.

    Zhao et al.: Decoupled knowledge distillation, CVPR 2022, with alpha 1 and beta 8.
    """
    target = F.one_hot(labels, student.shape[1]).bool()
    ours, theirs = student / temperature, teacher / temperature
    p, q = ours.softmax(1), theirs.softmax(1)
    p_target, q_target = (x.masked_select(target).clamp(1e-6, 1 - 1e-6) for x in (p, q))
    binary = q_target * (q_target / p_target).log() + (1 - q_target) * ((1 - q_target) / (1 - p_target)).log()
    others = F.kl_div(
        ours.masked_fill(target, -1e4).log_softmax(1), theirs.masked_fill(target, -1e4).log_softmax(1),
        log_target=True, reduction="batchmean",
    )  # fmt: skip
    return temperature**2 * (binary.mean() + 8 * others) + label_weight * F.cross_entropy(student, labels)


@LOSSES.register("dist")
def dist(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, label_weight: float = 1.0) -> Tensor:
    """2 T^2 (1 - Pearson correlation) of the probabilities, over classes and over examples, plus w times the cross-entropy.

    Huang et al.: Knowledge distillation from a stronger teacher, NeurIPS 2022.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1).mean()

    apart = distance(p, q) + distance(p.T, q.T)
    return 2 * temperature**2 * apart + label_weight * F.cross_entropy(student, labels)


@LOSSES.register("standardised")
def standardised(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, label_weight: float = 0.1) -> Tensor:
    """9 (T/2)^2 KL(teacher || student) of logits standardised per example, at temperature T/2, plus w times the cross-entropy.

    Sun et al.: Logit standardization in knowledge distillation, CVPR 2024.
    """

    def standard(z: Tensor) -> Tensor:
        return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7) / (temperature / 2)

    soft = F.kl_div(
        standard(student).log_softmax(1), standard(teacher).log_softmax(1), log_target=True, reduction="batchmean"
    )
    return 9 * (temperature / 2) ** 2 * soft + label_weight * F.cross_entropy(student, labels)


@LOSSES.register("mimic")
@at_rate(0.1)
def mimic(student: Tensor, teacher: Tensor, labels: Tensor, _temperature: float) -> Tensor:
    """Half the squared distance of the logits; labels and temperature play no part.

    Ba & Caruana: Do deep nets really need to be deep?, NeurIPS 2014, equation 1. Its gradients are as large as the logits, so that it
    is best at about a tenth of the others' learning rate.
    """
    return 0.5 * (student - teacher).square().sum(1).mean()


@LOSSES.register("labels")
def labels(student: Tensor, teacher: Tensor, labels: Tensor, _temperature: float) -> Tensor:
    """Cross-entropy with the labels alone: training without a teacher, to see what distillation adds."""
    return F.cross_entropy(student, labels)
