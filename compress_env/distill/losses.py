"""What a student is trained to match: functions `(student_logits, teacher_logits, labels, temperature) -> loss`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from compress_env.registry import Registry

LOSSES = Registry("loss")


@LOSSES.register("hinton")
def hinton(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """0.9 T^2 KL(teacher || student) at temperature T, plus 0.1 cross-entropy with the labels (Hinton et al. 2015).

    The factor T^2 keeps the gradient of the soft part in proportion when T changes.
    """
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    return 0.9 * temperature**2 * soft + 0.1 * F.cross_entropy(student, labels)


@LOSSES.register("mimic")
def mimic(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Half the squared distance of the logits, averaged over examples (Ba & Caruana 2014); labels and temperature play no part."""
    return 0.5 * (student - teacher).square().sum(1).mean()


@LOSSES.register("labels")
def labels(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with the labels alone: training without a teacher, to see what distillation adds."""
    return F.cross_entropy(student, labels)
