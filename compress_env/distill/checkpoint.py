"""`Checkpoint`: all of a training's state in one file, so that a training that was killed, even while it wrote, goes on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_env.distill.recipes import Recipe
from compress_env.files import atomic

FORMAT = 2


class Checkpoint:
    """A file that `fit` writes whole after each epoch, and goes on from.

    Attributes:
        kept: The caller's own, stored with the rest: what it puts in here is back when the training goes on.
    """

    def __init__(self, path: Path, model: nn.Module, recipe: Recipe, **made_with: Any):
        """A file, which is read if it exists.

        A file that is damaged, or of a training with other settings, is not used: a warning says that the training starts over.

        Args:
            path: The file.
            model: The network that is trained.
            recipe: How it is trained.
            made_with: Further settings that make a difference, as plain values.
        """
        self.path = path
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._made_with = {"format": FORMAT, "recipe": recipe.to_json(), "shapes": shapes, **made_with}
        self._found = self._load()
        self.kept: dict[str, Any] = self._found["kept"] if self._found else {}

    def restore(self, parts: Mapping[str, Any], generator: torch.Generator) -> tuple[int, int]:
        """Put the stored state into the parts (everything with `load_state_dict`) and the generator.

        Returns:
            The steps and epochs that were done, 0 if there is nothing to go on from.
        """
        if self._found is None:
            return 0, 0
        for name, part in parts.items():
            part.load_state_dict(self._found["parts"][name])
        generator.set_state(self._found["generator"])
        return self._found["step"], self._found["epoch"]

    def save(self, parts: Mapping[str, Any], generator: torch.Generator, step: int, epoch: int) -> None:
        """Write the state of the parts, the generator and `kept`, whole or not at all."""
        state = {
            "made_with": self._made_with, "parts": {name: part.state_dict() for name, part in parts.items()},
            "generator": generator.get_state(), "step": step, "epoch": epoch, "kept": self.kept,
        }  # fmt: skip
        with atomic(self.path) as part, part.open("wb") as file:
            torch.save(state, file)

    def _load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            reason = "" if found["made_with"] == self._made_with else "it is of a training with other settings"
        except Exception as error:  # noqa: BLE001 - torch has an exception for each kind of damage
            reason = f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})"
        if not reason:
            return found
        warnings.warn(f"the checkpoint {self.path} cannot be used, {reason}; the training starts over", stacklevel=3)
        return None


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
