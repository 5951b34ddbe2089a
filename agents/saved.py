"""Learned policies as ONNX files: they hold no code, need neither Stable-Baselines3 nor this version of it, and fit any teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress_env.contexts import quiet
from compress_env.errors import UserError
from compress_env.files import atomic
from compress_env.walk.observation import entries

FILE = "policy.onnx"
"""Its name in a run folder."""


class _Deterministic(nn.Module):
    """A policy of Stable-Baselines3 without noise, within the bounds of actions."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, observation):
        return self.policy._predict(observation, deterministic=True).clamp(-1, 1)


def save_policy(policy: nn.Module, path: Path) -> None:
    """Write a policy of Stable-Baselines3 for `load_policy`, with the names of what it observes."""
    names = [name for name, _, _ in entries()]
    policy.set_training_mode(False)
    checks = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(
        False
    )  # they look at values, which a tracer does not have
    try:
        with quiet("torch.onnx", "onnxscript", "onnx_ir"):
            program = torch.export.export(_Deterministic(policy), (torch.zeros(1, len(names)),), strict=False)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            written = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=["observation"], output_names=["action"]
            ).model_proto  # fmt: skip
    finally:
        torch.distributions.Distribution.set_default_validate_args(checks)
    written.metadata_props.add(key="observation", value=json.dumps(names))
    with atomic(path) as part:
        part.write_bytes(written.SerializeToString())


def load_policy(path: str | Path):
    """The function from observations `(n,)` to actions `(2,)` of a file of `save_policy`. Runs no code of the file's.

    Raises UserError if it cannot be read, or was learned from other observations than those of this version.
    """
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no policy {path}; a search with an agent that learns writes {FILE} into its run folder"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = json.loads(session.get_modelmeta().custom_metadata_map["observation"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has an exception for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no policy of this package: {reason}; give the {FILE} of a run folder") from error
    own = [name for name, _, _ in entries()]
    if names != own:
        differ = sorted(set(names) ^ set(own)) or ["their order"]
        raise UserError(
            f"{path} was learned from other observations ({', '.join(differ[:4])}); register what it knew, or learn anew"
        )
    return lambda observation: session.run(None, {"observation": np.asarray(observation, np.float32)[None]})[0][0]
