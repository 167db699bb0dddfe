"""Linear layers whose weights do not change while they are used, laid out for the processor's products.

Letters: D directions, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


class FixedLinear:
    """A linear layer whose weight does not change, without gradients.

    On a CPU and in float32 the weight is laid out once as the kernels of oneDNN read it, with the operations that
    `torch.compile` has for frozen weights. Where an ordinary product goes through another library, this takes a
    quarter to nine tenths of its time, the fewer rows and the wider the processor's vectors the less.

    Args:
        weight: `[outputs, inputs]`.
        bias: `[outputs]`.

    Attributes:
        is_packed: Whether the weight is laid out so.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self._bias = bias
        self.is_packed = can_pack(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach()) if self.is_packed else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)


class SideBySide:
    """A linear layer of each direction, with weights that do not change.

    Args:
        weights: `[outputs, inputs]` of each direction.
        biases: `[outputs]` of each.
    """

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None = None):
        self._layers = self._weight = self._bias = None
        if can_pack(weights[0]):
            self._layers = [FixedLinear(*own) for own in zip(weights, biases or [None] * len(weights))]
            return
        device = weights[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weights[0].dtype
        self._weight = torch.stack([weight.T for weight in weights]).to(dtype)
        if biases is not None:
            self._bias = torch.stack(biases)[:, None]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[D, R, inputs]` to `[D, R, outputs]`."""
        if self._layers is not None:
            outputs = [layer(rows) for layer, rows in zip(self._layers, x)]
            return torch.stack(outputs) if len(outputs) > 1 else outputs[0][None]
        return torch.bmm(x, self._weight) if self._bias is None else torch.baddbmm(self._bias, x, self._weight)


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN's layout is there for this weight, `[outputs, inputs]`, and of use."""
    on_cpu = weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    usable = weight.dtype == torch.float32 and weight.numel() > 0
    return on_cpu and usable and torch.backends.mkldnn.is_available()


__all__ = ["FixedLinear", "SideBySide", "can_pack"]
