"""`Network`: a network as PyTorch's graph module, quiet when it fails."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


class Network(fx.GraphModule):
    """A traced network or a student. Where its forward raises, nothing is printed; the error alone says what went wrong."""

    def recompile(self) -> Any:
        """Compile the graph, and call it like any other module."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code
