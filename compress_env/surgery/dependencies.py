"""Which channels depend on each other, found by running the network once with channel ids travelling along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from compress_env.surgery.call import Call, nothing, tensors
from compress_env.surgery.flow import ChannelFlow
from compress_env.surgery.rules.making import FILLED
from compress_env.surgery.rules.registry import function_rule, rule_of


def follow_channels(module: fx.GraphModule, examples: tuple[Tensor, ...]) -> ChannelFlow:
    """Run the network once; notes in each node its shape.

    Returns what is known of its channels; `settle` it once everything else that ties some was noted, too.
    """
    run = _Dependencies(module)
    with torch.no_grad():
        run.run(*examples)
    return run.flow


class _Dependencies(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.flow = ChannelFlow()

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        node.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        ids = self._follow(node, result)
        if ids is not None:
            self.flow.ids[node] = ids
        return result

    def _follow(self, node: fx.Node, result: Any) -> Any:
        flow = self.flow
        if node.op == "placeholder":
            return [] if isinstance(result, Tensor) else None
        if node.op == "get_attr":
            return flow.parameter(str(node.target), result)
        if node.op == "output":
            for i in node.all_input_nodes:
                flow.fix(flow.ids.get(i, []), "its channels are the network's outputs")
            return None
        call = Call(node, result, self.env, flow.ids)
        if node.op == "call_module":
            layer = self.module.get_submodule(call.name)
            return self._by_rule(call, lambda: rule_of(layer).follow(flow, call, layer))
        if not tensors(result):
            return None
        first: Any = node.args[0] if node.args else None
        if call.name == "getitem" and isinstance(self.env.get(first), (tuple, list, dict)):
            return flow.ids[first][node.args[1]]
        if call.name == "getattr" and isinstance(self.env.get(first), tuple):  # one that has names for its parts
            return next((ids for part, ids in zip(self.env[first], flow.ids[first]) if part is result), [])
        if not any(flow.ids.get(i) for i in node.all_input_nodes) and call.name not in FILLED:
            return nothing(result)
        return self._by_rule(call, lambda: function_rule(call)(flow, call))

    def _by_rule(self, call: Call, follow: Callable[[], Any]) -> Any:
        """What a rule says; where it does not know such a call, everything that the call reads stays."""
        try:
            return follow()
        except Exception as error:  # noqa: BLE001 - a rule may be a user's, and is for calls that its author thought of
            reason = f"{call.name} cannot be followed here ({type(error).__name__}: {error})"
            for layer, side in list(self.flow.sides):
                if call.node.op == "call_module" and layer == call.name:
                    self.flow.fix_side(layer, side, reason)
            return self.flow.opaque(call, reason)
