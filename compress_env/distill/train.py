"""The one training loop: teachers learn from labels in it, students from their teacher, for a few steps or to the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn, random
from tqdm.auto import tqdm

from compress_env.contexts import seeded
from compress_env.data.dataset import Data, Split, in_order, training_batches
from compress_env.devices import mixed_precision, repeatable
from compress_env.distill import processes
from compress_env.distill.checkpoint import Checkpoint
from compress_env.distill.cuda_graphs import replayed_training
from compress_env.distill.recipes import Recipe
from compress_env.failures import release_memory, short_of_memory
from compress_env.surgery.layout import channels_last, in_layout, memory_format

Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""`(outputs, labels, inputs, indices) -> loss`; `indices` are rows of the training split."""


AT_ONCE = 500
"""Examples that are run at once where nothing is learned, and there is memory for them."""


class Diverged(RuntimeError):
    """The loss is no longer a number."""


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    objective: Objective,
    generator: torch.Generator,
    *,
    on_epoch: Callable[[int], str] | None = None,
    checkpoint: Checkpoint | None = None,
    progress: str | None = None,
    recorded: bool = True,
) -> None:
    """Train `model` in place on `data.train`; it is left in evaluation mode.

    Of several processes (`distill.processes`), each takes its share of every batch, and gradients are averaged.

    Args:
        model: A network, on the device of the training.
        data: Its training examples, and how they are prepared and augmented.
        recipe: How long and how fast.
        objective: The loss.
        generator: Source of all randomness, that of dropout from its seed and the epoch.
        on_epoch: Called after each epoch with its number, from 1; the progress bar shows the text that it returns.
        checkpoint: The state is written there after that, and the training goes on from it.
        progress: Title of a progress bar, if one is to be shown.
        recorded: Whether a GPU may replay a recording of a pass: not for a network that runs other layers each time.

    Raises:
        Diverged: If the loss stops being finite.
    """
    device = next(model.parameters()).device
    first, shares = processes.rank() == 0, processes.world() * recipe.accumulate
    per_epoch = max(1, len(data.train) // recipe.batch_size)
    total = recipe.steps or recipe.epochs * per_epoch
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, max(total, 2), pct_start=recipe.warmup, cycle_momentum=False, div_factor=10
    )
    seed = generator.initial_seed()
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}
    step, epoch = checkpoint.restore(state, generator) if checkpoint else (0, 0)
    bar = tqdm(total=total, initial=step, desc=progress, unit="step", leave=False, disable=progress is None or not first)
    mine = [slice(share, None, shares) for share in range(processes.rank(), shares, processes.world())]
    bfloat16 = recipe.precision == "bfloat16"
    model.train()
    example = data.prepare(data.train.inputs[: recipe.batch_size][mine[0]].to(device))
    example = example.to(memory_format=memory_format(model, example))
    gpus = [device.index or 0] if device.type == "cuda" else []
    replayed = replayed_training(model, example, bfloat16) if recorded else nullcontext()
    with bar, channels_last(model), repeatable(device), random.fork_rng(gpus), replayed:
        while step < total:
            for source in (random.default_generator, *(torch.cuda.default_generators[i] for i in gpus)):
                source.manual_seed(seed + epoch)
            model.train()
            for indices, raw in training_batches(data, recipe.batch_size, generator, device, recipe.augment):
                optimizer.zero_grad(set_to_none=True)
                total_loss = torch.zeros((), device=device)
                for rows in mine:
                    inputs = in_layout(model, data.prepare(raw[rows]))
                    labels = data.train.labels[indices[rows]].to(device)
                    with mixed_precision(device, bfloat16):
                        outputs = model(inputs)
                    loss = objective(outputs.float(), labels, inputs, indices[rows]) / recipe.accumulate
                    loss.backward()
                    total_loss += loss.detach()
                total_loss = processes.average(model, total_loss)
                if not torch.isfinite(total_loss):
                    raise Diverged(f"the loss is {total_loss.item()} at step {step + 1} of {total}")
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
                if step == total:
                    break
            epoch += 1
            model.eval()
            if on_epoch:
                bar.set_postfix_str(on_epoch(epoch))
            if checkpoint and first:
                checkpoint.save(state, generator, step, epoch)
    model.eval()


def predict(model: nn.Module, data: Data, split: Split, batch_size: int = AT_ONCE, bfloat16: bool = False) -> Tensor:
    """Outputs of a model for every example of a split; where memory is short, with an eighth of the batch.

    Args:
        model: A network in evaluation mode.
        data: The data, which prepares inputs.
        split: Examples, in the order of the outputs.
        batch_size: Examples at once.
        bfloat16: Mixed precision.

    Returns:
        Outputs `(n, ...)`, float32 on the CPU.
    """
    try:
        return _predict(model, data, split, batch_size, bfloat16)
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error) or batch_size < 8:
            raise
    release_memory()  # out of the handler, which holds what the attempt had made
    return _predict(model, data, split, batch_size // 8, bfloat16)


@torch.inference_mode()
def _predict(model: nn.Module, data: Data, split: Split, batch_size: int, bfloat16: bool) -> Tensor:
    device = next(model.parameters()).device
    parts = []
    with seeded(0, device):  # for networks that are random in evaluation mode, too
        for raw in in_order(split, batch_size):
            inputs = data.prepare(raw.to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                parts.append(model(inputs.to(memory_format=memory_format(model, inputs))).float())
    return torch.cat(parts).cpu()
