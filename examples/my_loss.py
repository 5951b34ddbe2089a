"""A distillation loss of one's own: a function of the student's and the teacher's outputs, by name or as "module:attribute".

You will see one student, a third as wide as its teacher, distilled for three epochs with Hinton's loss, with labels alone, and
with the reverse KL, which is large where the student is sure of a class that its teacher finds unlikely. Both ways to name a
loss agree. Digits, CPU, about 5 seconds.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import finetuning_recipe
from compress_env.evaluator import Evaluator
from compress_env.problem import Problem
from compress_env.spec import EvaluatorSettings, ProblemSpec
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task


def reverse_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """0.9 T^2 KL(student || teacher) at temperature T (as in Gu et al., ICLR 2024), plus 0.1 cross-entropy with the labels."""
    ours, theirs = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    soft = kl_div(theirs, ours, log_target=True, reduction="batchmean")
    return 0.9 * temperature**2 * soft + 0.1 * cross_entropy(student, labels)


def main():
    torch.set_num_threads(1)
    load_task("classification").losses.register("reverse-kl")(reverse_kl)
    problem = Problem.build(ProblemSpec(teacher="resnet8-digits"))
    plan = Plan.of((), {name: group.size // 3 for name, group in problem.graph.groups.items()})
    evaluator, recipe = Evaluator(problem, EvaluatorSettings()), finetuning_recipe(len(problem.data.train), 3, problem.device)
    print(f"{'loss':20} {'before':>8} {'after':>8} {'test':>8}   accuracy; of the teacher {evaluator.teacher_metrics['accuracy']:.2%}")
    for loss in ("hinton", "labels", "reverse-kl", "my_loss:reverse_kl"):
        done = finetune(
            evaluator.prepared(plan), problem.whole, problem.data, recipe, problem.task, loss=loss, progress=False
        )
        print(f"{loss:20} {done.history[0]:8.2%} {done.last_validation:8.2%} {done.metric_test:8.2%}")


if __name__ == "__main__":
    main()
