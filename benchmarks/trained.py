"""A student fine-tuned as `compress-env finetune` does it, with a seed of its own: what comparisons on test images are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx, nn

from compress_env.contexts import one_thread
from compress_env.distill.finetune import finetune
from compress_env.distill.recipes import Recipe, finetuning_recipe
from compress_env.distill.train import channels_last, predict
from compress_env.envs.layer_removal import LayerRemovalEnv
from compress_env.surgery.plan import Plan
from compress_env.tasks import load_task
from compress_env.tasks.classification import accuracy


@dataclass(frozen=True)
class Trained:
    """Accuracies in [0, 1], on the whole validation and test splits: right after the surgery, and of the epoch that was best on
    validation images."""

    validation_start: float
    test_start: float
    validation: float
    test: float
    best_epoch: int


def recipe_of(env: LayerRemovalEnv, epochs: int, lr: float | None = None) -> Recipe:
    """The recipe of every full distillation here, with another peak rate if `lr` is given."""
    recipe = finetuning_recipe(len(env.data.train), epochs, env.device)
    return recipe if lr is None else replace(recipe, lr=lr)


def train(
    env: LayerRemovalEnv, student: nn.Module, recipe: Recipe, seed: int, checkpoint: Path, progress: bool = True
) -> Trained:
    """Distil the teacher into `student`, in place, on the device of `env`; an interrupted training goes on from `checkpoint`.

    seed: of the order of the images and their augmentation. Raises Diverged.
    """
    student = student.to(env.device)
    test = env.data.test
    with one_thread(), channels_last(student):
        start = accuracy(predict(student, env.data, test), test.labels)
    done = finetune(
        student, env.whole, env.data, recipe, load_task("classification"), seed=seed, checkpoint=checkpoint, progress=progress
    )
    return Trained(done.history[0], start, done.best_validation, done.metric_test, done.best_epoch)


def built(env: LayerRemovalEnv, plan: Plan) -> fx.GraphModule:
    """The student of a plan as it is before fine-tuning: with the teacher's weights, refitted as the search saw it."""
    student = env.student(plan)
    env.evaluator.prepare(student, plan)
    return student
