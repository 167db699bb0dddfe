"""Linear layers and other products by the processor's faster kernels.

On a CPU an ordinary float32 product goes through MKL. oneDNN has kernels of its own, which take half the time where
the processor has wide vectors: of weights that stay the same, laid out in an order of their own ([`FixedLinear`]), and
of whatever else where torch can be talked into them ([`matmul`]).

A fast product is used only where it is proved: on first use it is compared with the plain one, and where it is
missing, raises or differs, the plain one takes its place. A weight is read past its module only where the module is
exactly the plain one ([`is_plain`]). `BIDIR_SEQ2SEQ_KERNELS=plain` in the environment, or [`plain_kernels`], switches
all of it off.

Letters: D directions, R rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

T = TypeVar("T")
# How many callers want plain operations only; the environment is one that stays.
_num_plain = int(os.environ.get("BIDIR_SEQ2SEQ_KERNELS") == "plain")
# For a module and others, in one dtype: checksums of their weights, and what was made of them.
_KEPT: WeakKeyDictionary[nn.Module, dict[tuple, tuple[list[torch.Tensor], object]]] = WeakKeyDictionary()
# Of fewer multiplications a product takes less time than to start one of oneDNN's.
MANY_PRODUCTS = 2**20
# On a CPU the best of so many sums are looked for in so many shares of the columns at once.
MANY_SUMS, NUM_SHARES = 2**15, 8


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Within it, every thread computes by torch's plain operations and the modules' own methods."""
    global _num_plain
    _num_plain += 1
    try:
        yield
    finally:
        _num_plain -= 1


def are_enabled() -> bool:
    """Whether fast operations may be used at all."""
    return _num_plain == 0


def is_plain(module: nn.Module, *own_types: type[nn.Module]) -> bool:
    """Whether a module computes what its class and its weights say, so that others may compute it in its place.

    It does not if it, or a module within it, is of another class than torch's plain ones (an adapter, a quantized or
    parametrized layer), has a hook, has had its `forward` replaced, or if its weights have several dtypes.

    Args:
        module: Such as a linear layer, or a decoder.
        own_types: Further classes that may be within it.
    """
    plain_types = (*_PLAIN_TYPES, *own_types)
    if any(type(part) not in plain_types or _is_hooked(part) for part in module.modules()):
        return False
    return len({weight.dtype for weight in module.parameters()}) <= 1


def _is_hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_all = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    return (
        "forward" in vars(module)
        or any(getattr(module, kind, None) for kind in kinds)
        or any(getattr(nn.modules.module, kind, None) for kind in of_all)
    )


class Linear(nn.Linear):
    """`nn.Linear`, forward and back by [`matmul`]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        if product_dtype(self.weight) == torch.float32 and is_direct(x, self.weight.T):
            return _Product.apply(x, self.weight, self.bias)
        return super().forward(x)


_PLAIN_TYPES = (
    nn.Dropout,
    nn.Embedding,
    nn.GRU,
    nn.LSTM,
    nn.LayerNorm,
    nn.Linear,
    nn.ModuleList,
    nn.ReLU,
    nn.Sequential,
    Linear,
)


class _Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        outputs = matmul(x, weight.T)
        return outputs if bias is None else outputs.add_(bias)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            matmul(grad, weight) if wants_x else None,
            matmul(rows.T, x.reshape(-1, x.shape[-1])) if wants_weight else None,
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
        lay_out: Whether to do so. For one batch it is not worth while where products are direct ([`is_direct`]).

    Attributes:
        dtype: That of the product: the weight's, or autocast's.
        is_packed: Whether the weight is laid out so.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, lay_out: bool = True):
        self.is_packed, self.dtype = lay_out and can_pack(weight), product_dtype(weight)
        self._weight = weight.detach().to(self.dtype)
        self._bias = None if bias is None else bias.detach().to(self.dtype)
        if self.is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        x = x.to(self.dtype)
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return matmul(x, self._weight.T) if self._bias is None else F.linear(x, self._weight, self._bias)


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
    # A compiler would trace the probe; it has layouts of its own.
    return are_enabled() and not torch.compiler.is_compiling() and _packs_rightly(product_dtype(weight))


@cache
def _packs_rightly(dtype: torch.dtype) -> bool:
    """Whether oneDNN's operations for weights laid out once are there and give a product in `dtype` as it should be.

    torch keeps them to itself, so the next one may have renamed them.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(24, 24, generator=generator).to(dtype) for _ in range(2))
    bias = torch.randn(24, generator=generator).to(dtype)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight)
            found = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
            torch.testing.assert_close(found, F.linear(x, weight, bias))
    except Exception as error:  # Whatever is wrong with it, the plain product is there.
        logger.warning(f"products by oneDNN's layout are not used in {dtype}: {str(error).splitlines()[0]}")
        return False
    return True


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`[..., M, K]` times `[..., K, N]`, `[..., M, N]`: `torch.matmul`, on a CPU in float32 by oneDNN.

    torch gives a float32 product to oneDNN only with leave to round to bfloat16, of which oneDNN makes use only on
    processors with such products. On the others float32 remains, and there this function gives leave.
    """
    if not is_direct(left, right):
        return left @ right
    with _LEAVE_TO_ROUND:
        return left @ right


def addmm_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Adds the product of `[M, K]` and `[K, N]` to `total`, `[M, N]`, as [`matmul`] makes it."""
    if not is_direct(left, right):
        return total.addmm_(left, right)
    with _LEAVE_TO_ROUND:
        return total.addmm_(left, right)


def is_direct(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether oneDNN may make the product of `[..., M, K]` and `[..., K, N]` as they are, and is faster than MKL."""
    is_large = left.numel() * right.shape[-1] >= MANY_PRODUCTS
    is_ordinary = are_enabled() and left.device.type == "cpu" and left.dtype == right.dtype == torch.float32
    return is_large and is_ordinary and not torch.compiler.is_compiling() and _stays_float32()


class _LeaveToRound:
    """A setting of the whole process: it lasts from the first thread that asks for it to the last."""

    def __init__(self):
        self._lock, self._holders, self._before = Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if self._holders == 0:
                self._before = torch.backends.mkldnn.matmul.fp32_precision
                torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            self._holders += 1

    def __exit__(self, *_):
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                torch.backends.mkldnn.matmul.fp32_precision = self._before


_LEAVE_TO_ROUND = _LeaveToRound()


@cache
def _stays_float32() -> bool:
    """Whether products with leave to round to bfloat16 are float32 products all the same.

    On x86 they are where there are no matrix tiles (AMX); a product that any rounding would change has to confirm it.
    """
    processor = torch.cpu.get_capabilities()
    if processor.get("architecture") != "x86_64" or processor.get("amx_tile"):
        return False
    ones = torch.eye(64).expand(16, -1, -1)
    # The last of float32's 23 bits, of which bfloat16 keeps 7.
    numbers = torch.full((16, 64, 64), 1 + 2**-23)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False), _LEAVE_TO_ROUND:
            return torch.equal(ones @ numbers, numbers) and torch.equal(numbers @ ones, numbers)
    except (AttributeError, RuntimeError) as error:
        logger.warning(f"float32 products by oneDNN are not used: {error}")
        return False


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


def largest_sums(
    x: torch.Tensor, scores: torch.Tensor, count: int, is_log: bool = True
) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
    """The largest of all `x + scores` over the last two dimensions.

    On a CPU and of many, they are found in the places of a share of the columns where the maxima over the shares are
    largest, which leaves little to sort.

    Args:
        x: `[..., K, M]`.
        scores: `[..., K]`, what is added to each row.
        count: How many, C.
        is_log: Whether to add to `x` itself, not to its logarithm.

    Returns:
        The sums `[..., C]`, largest first, their rows and their columns.
    """
    num_columns, size = x.shape[-1], x.shape[-1] // NUM_SHARES
    if x.device.type != "cpu" or x.numel() < MANY_SUMS or num_columns % NUM_SHARES:
        sums, places = ((x if is_log else x.log()) + scores[..., None]).flatten(-2).topk(count)
        return sums, places // num_columns, places % num_columns
    maxima = x.unflatten(-1, (NUM_SHARES, size)).amax(-2)
    maxima = ((maxima if is_log else maxima.log()) + scores[..., None]).flatten(-2)
    places = maxima.topk(min(count, maxima.shape[-1]), sorted=False).indices
    rows = places // size
    # From the first share on; [..., C, shares].
    places = (places + rows * (num_columns - size))[..., None] + torch.arange(0, num_columns, size)
    found = x.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)
    found = (found if is_log else found.log()) + scores.gather(-1, rows)[..., None]
    sums, order = found.flatten(-2).topk(count)
    places = places.flatten(-2).gather(-1, order)
    return sums, places // num_columns, places % num_columns


__all__ = [
    "NUM_SHARES",
    "FixedLinear",
    "Linear",
    "SideBySide",
    "addmm_",
    "are_enabled",
    "can_pack",
    "is_direct",
    "is_plain",
    "keep",
    "largest_sums",
    "matmul",
    "plain_kernels",
    "product_dtype",
]
