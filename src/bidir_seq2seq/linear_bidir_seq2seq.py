"""Linear layers by the processor's faster products, for which weights have to be laid out first.

On a CPU an ordinary float32 product goes through MKL. oneDNN has kernels of its own, which read weights in an order of
their own; where the processor has wide vectors they take half the time.

Letters: D directions, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

T = TypeVar("T")
# For a module and others, in one dtype: checksums of their weights, and what was made of them.
_KEPT: WeakKeyDictionary[nn.Module, dict[tuple, tuple[list[torch.Tensor], object]]] = WeakKeyDictionary()
# Of so many rows a float32 product is faster even if its weight is laid out for it alone.
MANY_ROWS = 256


class Linear(nn.Linear):
    """`nn.Linear`, faster for many rows in float32 on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        is_large = x.dtype == torch.float32 and x.numel() >= MANY_ROWS * self.in_features
        usable = is_large and product_dtype(self.weight) == torch.float32 and can_pack(self.weight)
        if usable and not torch.compiler.is_compiling():
            return _Product.apply(x, self.weight, self.bias)
        return super().forward(x)


class _Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return FixedLinear(weight, bias)(x)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            FixedLinear(weight.T)(grad) if wants_x else None,
            # Sums over many rows are as fast without being laid out.
            rows.T @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


class FixedLinear:
    """A linear layer whose weight does not change, without gradients.

    On a CPU the weight is laid out once, with the operations that `torch.compile` has for frozen weights. In float32
    this takes a quarter to nine tenths of an ordinary product's time, in bfloat16 half to nine tenths: the fewer rows
    and the wider the processor's vectors the less.

    Args:
        weight: `[outputs, inputs]`.
        bias: `[outputs]`.

    Attributes:
        dtype: That of the product: the weight's, or autocast's.
        is_packed: Whether the weight is laid out so.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.is_packed, self.dtype = can_pack(weight), product_dtype(weight)
        self._weight = weight.detach().to(self.dtype)
        self._bias = None if bias is None else bias.detach().to(self.dtype)
        if self.is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        x = x.to(self.dtype)
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
        self._weight = torch.stack([weight.T for weight in weights]).to(product_dtype(weights[0]))
        if biases is not None:
            self._bias = torch.stack(biases)[:, None]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[D, R, inputs]` to `[D, R, outputs]`."""
        if self._layers is not None:
            outputs = [layer(rows) for layer, rows in zip(self._layers, x)]
            return torch.stack(outputs) if len(outputs) > 1 else outputs[0][None]
        return torch.bmm(x, self._weight) if self._bias is None else torch.baddbmm(self._bias, x, self._weight)


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """That of products with this weight, `[outputs, inputs]`: its own, or autocast's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def can_pack(weight: torch.Tensor) -> bool:
    """Whether oneDNN's layout is there for products with this weight, `[outputs, inputs]`, and of use."""
    if weight.device.type != "cpu" or weight.numel() == 0 or not torch.backends.mkldnn.is_available():
        return False
    dtype = product_dtype(weight)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def keep(make: Callable[[], T], *modules: nn.Module) -> T:
    """What `make` makes of the weights of modules; of the same weights it is made only once.

    Laying weights out takes as long as several steps of a search. Not every change of a weight leaves a trace (one of
    `weight.data` does not), so each call compares checksums, which takes a quarter of that. Where weights are not laid
    out nothing is kept.

    Args:
        make: What it makes may hold weights, but no modules, which would then live for ever.
        modules: Every weight that `make` uses is one of theirs.
    """
    weights = [weight for module in modules for weight in module.parameters()]
    if not all(map(can_pack, weights)):
        _KEPT.pop(modules[0], None)
        return make()
    kept = _KEPT.setdefault(modules[0], {})
    key = (*map(id, modules[1:]), product_dtype(weights[0]))
    with torch.autocast("cpu", enabled=False):
        checksums = [weight.float() @ _random_numbers(weight.shape[-1]) for weight in weights]
    before, made = kept.pop(key, ([], None))
    if len(before) != len(checksums) or not all(map(torch.equal, before, checksums)):
        made = None  # Old and new need not be there at once.
        made = make()
    kept[key] = checksums, made
    return made


@cache
def _random_numbers(count: int) -> torch.Tensor:
    """`[count]`, always the same: times a weight they tell apart what products tell apart, also in another order."""
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


__all__ = ["FixedLinear", "Linear", "SideBySide", "can_pack", "keep", "product_dtype"]
