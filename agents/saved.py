"""Learned policies as ONNX files: they hold no code, need neither Stable-Baselines3 nor this version of it, and fit any teacher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress_env.contexts import quiet
from compress_env.errors import UserError
from compress_env.extras import ONNX, need
from compress_env.files import atomic
from compress_env.search.agent import Policy
from compress_env.search.run import POLICY


def save_policy(policy: nn.Module, names: Sequence[str], actions: str, path: Path) -> None:
    """Write a policy for `load_policy`, whole or not at all.

    Args:
        policy: From observations `(n, entries)` to actions `(n, 2)`, without chance.
        names: Names of the entries that it observes.
        actions: What its actions mean, "relative" or "absolute".
        path: The file.
    """
    need("a policy's file", *ONNX)
    import onnx

    checks = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(
        False
    )  # they look at values, which a tracer does not have
    try:
        with quiet("torch.onnx", "onnxscript", "onnx_ir"):
            program = torch.export.export(policy, (torch.zeros(1, len(names)),), strict=False)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
            written = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=["observation"], output_names=["action"]
            ).model_proto  # type: ignore[union-attr]  # fmt: skip
    finally:
        torch.distributions.Distribution.set_default_validate_args(checks)
    written.metadata_props.add(key="observation", value=json.dumps(list(names)))
    written.metadata_props.add(key="actions", value=actions)
    with atomic(path) as part:
        onnx.save(written, part)


def load_policy(path: str | Path, names: Sequence[str] | None = None, actions: str | None = None) -> Policy:
    """The policy of a file of `save_policy`. Its graph is checked before it runs (`policy_graph.check`).

    Args:
        path: The file.
        names: Names of the entries that it is going to observe; None to find out only whether it is a policy.
        actions: What its actions are going to mean; None likewise.

    Raises:
        UserError: If it cannot be read, is no policy, or was learned from other observations; when it is used, if an action of its
            is no number.
    """
    need("a policy's file", *ONNX)
    import onnx
    import onnxruntime

    from compress_env.agents import policy_graph

    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there is no policy {path}; a search with an agent that learns writes {POLICY} into its run folder"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        if path.stat().st_size > policy_graph.BYTES:
            raise policy_graph.NoPolicy(f"it has more than {policy_graph.BYTES >> 20} MiB")
        model = onnx.load(path, load_external_data=False)
        known = {entry.key: entry.value for entry in model.metadata_props}
        learned, meant = json.loads(known["observation"]), known["actions"]
        if not isinstance(learned, list) or not all(isinstance(name, str) for name in learned):
            raise policy_graph.NoPolicy("the names of its observations are no list of texts")
        policy_graph.check(model, len(learned))
        content = model.SerializeToString()  # what was checked, and not what lies at the path by now
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has an exception for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no policy of this package: {reason}; give the {POLICY} of a run folder") from error
    if names is not None and learned != list(names):
        differ = sorted(set(names) ^ set(learned)) or ["their order"]
        raise UserError(
            f"{path} was learned from other observations ({', '.join(differ[:4])}); take the budget that it was learned with, or "
            "learn anew"
        )
    if actions is not None and meant != actions:
        raise UserError(f"{path} was learned with {meant} actions, and these are {actions}; give actions={meant!r}, or learn anew")

    def policy(observation: np.ndarray) -> np.ndarray:
        (action,) = session.run(["action"], {"observation": np.asarray(observation, np.float32)[None]})[0]
        if not np.isfinite(action).all():
            raise UserError(f"{path} gives the action {action.tolist()}, which is no number; its weights are damaged, learn anew")
        return action

    return policy
