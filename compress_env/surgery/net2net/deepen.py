"""Net2Deeper: a layer more, or a residual block more, that leaves every number as it is."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compress_env.errors import UserError
from compress_env.registry import unknown
from compress_env.surgery.build import build_student
from compress_env.surgery.graph import LayerGraph
from compress_env.surgery.net2net.preserved import NotPreserved, check_preserved, random_inputs, result_at
from compress_env.surgery.plan import Plan
from compress_env.surgery.rules import rule_of
from compress_env.surgery.rules.elementwise import IDEMPOTENT

KINDS = ("layer", "block")


@dataclass(frozen=True)
class Place:
    """A tensor of the network behind which something can be inserted.

    Attributes:
        name: Of the operation that gives it, as in `LayerGraph.ops`.
        channels: How many channels it has.
        convolution: Whether they lie along the axis 1 of images; else along the last axis.
        kinds: What can be inserted: "layer", where an activation that does nothing when it is applied again has just been; "block"
            everywhere.
    """

    name: str
    channels: int
    convolution: bool
    kinds: tuple[str, ...]


def places(module: nn.Module, graph: LayerGraph) -> dict[str, Place]:
    """Where a network can become deeper, in the order of its operations.

    Args:
        module: The network.
        graph: Its layer graph.
    """
    found: dict[str, Place] = {}
    axes: dict[str, int | None] = {}
    for node in graph.fx_graph.nodes:
        shape = node.meta.get("shape")
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = (axes[i.name] for i in node.all_input_nodes if axes.get(i.name))
        weighted = layer is not None and rule_of(layer).reads
        axis = rule_of(layer).channel_axis() if weighted else next(before, None)
        axes[node.name], op = axis, graph.ops.get(node.name)
        if op is None or not shape or node.name == graph.output or op.across is not None:
            continue
        channels = graph.full_size(op.channels)
        convolution = len(shape) == 4 and shape[1] == channels and (axis != -1 or shape[-1] != channels)
        if not op.channels.parts or not (convolution or shape[-1] == channels):
            continue
        activated = _activation(module, node) is not None
        if activated or node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            found[node.name] = Place(node.name, channels, convolution, KINDS if activated else ("block",))
    return found


def deepen(
    module: nn.Module, graph: LayerGraph, place: str, kind: str | None = None, *, name: str = "deeper",
    inputs: Tensor | None = None,
) -> fx.GraphModule:  # fmt: skip
    """The network with an identity more, in evaluation mode; it computes the same, up to rounding.

    A "layer" is a convolution (3 x 3) or a linear layer that passes its input on, with a batch normalisation if the network has such,
    and the activation that is in front of it (Net2Deeper, Chen et al., ICLR 2016). A "block" is a residual branch whose last layer
    gives 0.

    Args:
        module: The network, in evaluation mode; it is not changed.
        graph: Its layer graph, by `trace`.
        place: One of `places(module, graph)`.
        kind: "layer" or "block"; the first that the place allows if None.
        name: What the new layers' names begin with.
        inputs: Inputs `(batch, ...)` on which the normalisation takes its statistics, so that training goes on smoothly; without any,
            it has a mean of 0 and a deviation of 1.

    Raises:
        UserError: If there is no such place or kind.
        NotPreserved: If a layer is wanted behind an activation that would change its own results.
    """
    known = places(module, graph)
    if place not in known:
        raise UserError(unknown("place", place, list(known)))
    at = known[place]
    kind = kind or at.kinds[0]
    if kind not in KINDS:
        raise UserError(unknown("kind", kind, list(KINDS)))
    if kind not in at.kinds:
        raise NotPreserved(
            f"a layer behind {place!r} would not preserve what the network computes: it needs an activation in front of it that is "
            "idempotent, as ReLU is; insert a block there"
        )
    network = build_student(module, graph, Plan())
    inserted(network, at, kind, name, any(rule_of(m).keeps_statistics(m) for m in network.modules()), inputs)
    check_preserved(build_student(module, graph, Plan()), network, random_inputs(graph, module), f"a {kind} behind {place!r}")
    return network


def inserted(network: fx.GraphModule, at: Place, kind: str, name: str, normalised: bool, inputs: Tensor | None) -> None:
    """Put a layer or a block into the traced network, in place."""
    node = next(n for n in network.graph.nodes if n.name == at.name)
    users = list(node.users)
    like = next(network.parameters())
    statistics = result_at(network, at.name, inputs.to(like)) if inputs is not None and normalised else None
    first = _identity(at).to(like)
    layers: list[nn.Module] = [first]
    activation: nn.Module | fx.Node | None = _activation(network, node)
    if normalised:
        layers.append(_normalisation(at, statistics, like))
    if kind == "block":
        activation = nn.ReLU()
        layers += [activation, _zero(at).to(like)]
    elif isinstance(activation, nn.Module):
        layers.append(copy.deepcopy(activation))
    last = node
    for i, layer in enumerate(layers):
        target = f"{name}.{i}"
        network.add_submodule(target, layer.eval())
        with network.graph.inserting_after(last):
            last = network.graph.call_module(target, (last,))
    if kind == "block":
        with network.graph.inserting_after(last):
            last = network.graph.call_function(operator.add, (node, last))
    elif isinstance(activation, fx.Node):
        with network.graph.inserting_after(last):
            rest = activation.args[1:]
            last = network.graph.create_node(activation.op, activation.target, (last, *rest), dict(activation.kwargs))
    for user in users:
        user.replace_input_with(node, last)
    network.recompile()


def _activation(module: nn.Module, node: fx.Node) -> nn.Module | fx.Node | None:
    """The activation that gives the tensor, a module or the node of a function, if applying it once more changes nothing."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        if not rule_of(layer).elementwise:
            return None
        x = torch.linspace(-8, 8, 101)
        once = copy.deepcopy(layer).eval()(x.clone())
        return layer if torch.equal(copy.deepcopy(layer).eval()(once.clone()), once) and not torch.equal(once, x) else None
    return node if node.target in IDEMPOTENT else None


def _identity(at: Place) -> nn.Module:
    if not at.convolution:
        layer: nn.Module = nn.Linear(at.channels, at.channels)
        nn.init.eye_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return layer
    layer = nn.Conv2d(at.channels, at.channels, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight)
    return layer


def _zero(at: Place) -> nn.Module:
    layer: nn.Module = nn.Conv2d(at.channels, at.channels, 3, padding=1) if at.convolution else nn.Linear(at.channels, at.channels)
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


@torch.no_grad()
def _normalisation(at: Place, statistics: Tensor | None, like: Tensor) -> nn.Module:
    """A batch normalisation that leaves its input as it is: it scales by the deviation and shifts by the mean that it takes away."""
    norm = (nn.BatchNorm2d if at.convolution else nn.BatchNorm1d)(at.channels).to(like)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    if statistics is not None:
        rows = (statistics.movedim(1, -1) if at.convolution else statistics).reshape(-1, at.channels)
        mean.copy_(rows.mean(0))
        variance.copy_(rows.var(0))
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(mean)
    return norm
