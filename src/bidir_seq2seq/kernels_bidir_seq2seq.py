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
from copy import deepcopy
from functools import cache
from threading import Lock
from typing import Any, TypeVar
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
# Of fewer rows it takes longer to lay a weight out for one batch than that saves.
MANY_ROWS = 1024
# Rows of logits worked on at a time: enough for efficient products, few enough to stay in a processor's cache.
BLOCK_ROWS = {"cpu": 256}
DEFAULT_BLOCK_ROWS = 4096
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
    parametrized layer), has a hook, has had its `forward` replaced, draws at random (dropout in training), or if its
    weights have several dtypes.

    Args:
        module: Such as a linear layer, or a decoder.
        own_types: Further classes that may be within it.
    """
    plain_types = (*_PLAIN_TYPES, *own_types)
    if any(type(part) not in plain_types or _is_hooked(part) or _drops_out(part) for part in module.modules()):
        return False
    return len({weight.dtype for weight in module.parameters()}) <= 1


def _is_hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_all = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    of_all += ("_global_backward_pre_hooks",)
    return (
        "forward" in vars(module)
        or any(getattr(module, kind, None) for kind in kinds)
        or any(getattr(nn.modules.module, kind, None) for kind in of_all)
    )


def _drops_out(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Its dropouts do nothing, whatever the module is doing otherwise."""
    active = [part for part in module.modules() if _drops_out(part)]
    for part in active:
        part.training = False
    try:
        yield
    finally:
        for part in active:
            part.training = True


def is_read_at_once(x: torch.Tensor) -> bool:
    """Whether the values of `x` `[...]` may decide what to do: elsewhere looking at them would stall the device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def runs_under_autocast(rnn: nn.RNNBase, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device has a recurrent layer in half precision; oneDNN has not on every processor."""
    layer = deepcopy(rnn).to(device)
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype):
            layer(torch.zeros(1, 1, rnn.input_size, device=device))
    except RuntimeError:
        return False
    return True


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is a CPU that multiplies bfloat16 by itself, and so faster than float32."""
    if device.type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def block_size(x: torch.Tensor) -> int:
    """How many rows `[V]` of logits that are made of `x`, `[rows, E]`, to work on at a time."""
    return BLOCK_ROWS.get(x.device.type, DEFAULT_BLOCK_ROWS)


def column_multiple(x: torch.Tensor) -> int:
    """Of what the number of columns beside `x`, `[..., E]`, had better be a multiple, for [`largest_sums`]."""
    return NUM_SHARES if x.device.type == "cpu" else 1


class MatmulLinear(nn.Linear):
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
    MatmulLinear,
)


class _Product(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        outputs = matmul(x, weight.T)
        return outputs if bias is None else outputs.add_(bias)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
        num_rows: How many rows it will be used for in all; of few it is not always worth while to lay it out. Default:
            of many.

    Attributes:
        dtype: That of the product: the weight's, or autocast's.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, num_rows: int | None = None):
        few = num_rows is not None and num_rows < MANY_ROWS
        is_fast_anyway = few and _is_direct(weight.dtype, weight, num_rows * weight.numel())
        self.is_packed, self.dtype = can_pack(weight) and not is_fast_anyway, product_dtype(weight)
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

    def add_to(self, total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Adds the product of `[rows, inputs]` to `total` `[rows, outputs]`."""
        if self.is_packed or x.dtype != total.dtype or self._bias is not None:
            return total.add_(self(x))
        return addmm_(total, x, self._weight.T)


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


def without_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which products on the device of `x` `[...]` have the dtype of their factors."""
    return torch.autocast(x.device.type, enabled=False)


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """That of products with `weight` `[...]`: its own, or autocast's."""
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
    with _BY_ONEDNN:
        return left @ right


def addmm_(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Adds the product of `[M, K]` and `[K, N]` to `total`, `[M, N]`, as [`matmul`] makes it."""
    if not is_direct(left, right):
        return total.addmm_(left, right)
    with _BY_ONEDNN:
        return total.addmm_(left, right)


def is_direct(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether oneDNN may make the product of `[..., M, K]` and `[..., K, N]` as they are, and is faster than MKL."""
    return _is_direct(left.dtype, right, left.numel() * right.shape[-1])


def _is_direct(dtype: torch.dtype, right: torch.Tensor, num_products: int) -> bool:
    is_ordinary = are_enabled() and is_read_at_once(right) and dtype == right.dtype == torch.float32
    return num_products >= MANY_PRODUCTS and is_ordinary and _stays_float32()


class _OneDNNProducts:
    """The setting under which torch gives products to oneDNN, "bf16", while somebody asks for it.

    It is the whole process's: it lasts from the first thread that asks for it to the last.
    """

    def __init__(self) -> None:
        self._lock, self._holders, self._before = Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._before = torch.backends.mkldnn.matmul.fp32_precision
                torch.backends.mkldnn.matmul.fp32_precision = "bf16"
            self._holders += 1

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                torch.backends.mkldnn.matmul.fp32_precision = self._before


_BY_ONEDNN = _OneDNNProducts()


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
        with torch.inference_mode(), torch.autocast("cpu", enabled=False), _BY_ONEDNN:
            return torch.equal(ones @ numbers, numbers) and torch.equal(numbers @ ones, numbers)
    except (AttributeError, RuntimeError) as error:
        logger.warning(f"float32 products by oneDNN are not used: {error}")
        return False


class RecurrentStep:
    """The same recurrent layer of each direction, for one token at a time.

    Args:
        rnns: An `nn.LSTM` or `nn.GRU` of one layer for each direction.
    """

    def __init__(self, rnns: Sequence[nn.RNNBase]):
        self.hidden_size = rnns[0].hidden_size
        self._cell = torch.lstm_cell if isinstance(rnns[0], nn.LSTM) else torch.gru_cell
        self._weights = [rnn.all_weights[0] for rnn in rnns]
        self._gates: SideBySide | None = None
        if isinstance(rnns[0], nn.LSTM) and can_pack(self._weights[0][0]):
            # One product of what is read and what is remembered, and the other operations for both directions at once.
            weights = [torch.cat(both, dim=1) for *both, _, _ in self._weights]
            biases = [input_bias + hidden_bias for *_, input_bias, hidden_bias in self._weights]
            self._gates = SideBySide(weights, biases)

    def __call__(self, x: torch.Tensor, state: tuple[torch.Tensor, ...] | None) -> tuple[torch.Tensor, ...]:
        """One token.

        Args:
            x: `[D, R, inputs]`.
            state: `(h, c)`, or `(h,)` of a GRU, each `[D, R, H]`; zeros if `None`.

        Returns:
            The next state.
        """
        if state is None:
            zeros = x.new_zeros(*x.shape[:2], self.hidden_size)
            state = (zeros, zeros) if self._cell is torch.lstm_cell else (zeros,)
        if self._gates is not None:
            return self._lstm(x, *state)
        nexts = []
        for direction, weights in enumerate(self._weights):
            before = tuple(part[direction] for part in state)
            after = self._cell(x[direction], before if len(before) == 2 else before[0], *weights)
            nexts.append(after if len(before) == 2 else (after,))
        return tuple(torch.stack(parts) for parts in zip(*nexts))

    def _lstm(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # torch's order, and its names, of gates.
        i, f, g, o = self._gates(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        c = torch.addcmul(f.sigmoid_() * c, i.sigmoid_(), tanh(g))
        return o.sigmoid_() * tanh(c), c


def tanh(x: torch.Tensor) -> torch.Tensor:
    """Of `x` `[...]`, which it leaves as it is."""
    # On a CPU torch's own takes five to ten times as long as its sigmoid, which of many is more than to start it.
    return torch.tanh(x) if x.numel() < 2**12 else x.mul(2).sigmoid_().mul_(2).sub_(1)


def attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """torch's `scaled_dot_product_attention`, with gradients that are as fast in half precision.

    Args:
        queries: `[..., N, Q, D]`.
        keys, values: `[..., N, M, D]`.
        mask: Bool, broadcast to `[..., N, Q, M]`; true may be read.

    Returns:
        The context `[..., N, Q, D]`.
    """
    is_half = queries.dtype in (torch.bfloat16, torch.float16)
    if not (is_half and queries.device.type == "cpu" and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    # On a CPU the kernel's backward pass takes two to nine times as long in half precision.
    with torch.autocast("cpu", enabled=False):
        in_full = (x.float() for x in (queries, keys, values))
        return F.scaled_dot_product_attention(*in_full, attn_mask=mask).to(queries.dtype)


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
    if not is_read_at_once(x) or x.numel() < MANY_SUMS or num_columns % NUM_SHARES:
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
    "FixedLinear",
    "MatmulLinear",
    "RecurrentStep",
    "SideBySide",
    "addmm_",
    "are_enabled",
    "attention",
    "block_size",
    "can_pack",
    "column_multiple",
    "has_bfloat16",
    "is_direct",
    "is_plain",
    "is_read_at_once",
    "keep",
    "largest_sums",
    "matmul",
    "plain_kernels",
    "product_dtype",
    "runs_under_autocast",
    "tanh",
    "without_autocast",
    "without_dropout",
]
