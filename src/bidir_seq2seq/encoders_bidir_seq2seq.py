"""How a source is read: layers of recurrent cells, of convolutions or of self-attention.

Letters: B batch, S source length, H hidden size, N attention heads, D head size. Time comes first, as recurrent
kernels want it, and each row's tokens stand before its padding, wherever that stood: so a row's states depend on its
tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .kernels_bidir_seq2seq import attention

RNN_CLASSES = {"lstm": nn.LSTM, "gru": nn.GRU}


@dataclass
class Rows:
    """Where the tokens of a batch stand, before and after each row's tokens have been moved to its front.

    Args:
        order: `[S, B]`, which position of the row comes when: tokens first.
        restored: `[S, B]`, its inverse.
        mirror: `[S, B]`, reverses each row's tokens and leaves its padding in place; its own inverse.
        is_token: `[S, B, 1]` bool, of the rows in order.
    """

    order: torch.LongTensor
    restored: torch.LongTensor
    mirror: torch.LongTensor
    is_token: torch.BoolTensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Rows:
        """From `[B, S]` bool, true at tokens."""
        mask = mask.T
        order = (~mask).to(torch.uint8).argsort(dim=0, stable=True)
        lengths = mask.sum(0)
        positions = torch.arange(len(mask), device=mask.device)[:, None]
        is_token = positions < lengths
        mirror = torch.where(is_token, lengths - 1 - positions, positions)
        return cls(order, order.argsort(dim=0), mirror, is_token[..., None])

    def arrange(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, S, D]` to `[S, B, D]` in order."""
        return _permute(x.transpose(0, 1), self.order, self.restored)

    def restore(self, x: torch.Tensor) -> torch.Tensor:
        """`[S, B, D]` back to `[B, S, D]`, in one piece of memory, which products would otherwise each copy."""
        index, inverse = self.restored, self.order
        length, num_rows = index.shape
        rows = torch.arange(num_rows, device=x.device)
        index, inverse = (index * num_rows + rows).T.flatten(), (inverse + rows * length).flatten()
        return _Permute.apply(x.flatten(0, 1), index, inverse).view(num_rows, length, x.shape[-1])

    def reverse(self, x: torch.Tensor) -> torch.Tensor:
        """`[S, B, D]` in order, each row's tokens from the right."""
        return _permute(x, self.mirror, self.mirror)


class EncoderLayer(nn.Module):
    """LayerNorm, then one recurrent pass from the left and one from the right, side by side."""

    def __init__(self, config: BidirSeq2SeqConfig, input_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        rnn = RNN_CLASSES[config.rnn_type]
        self.forward_rnn = rnn(input_size, config.hidden_size // 2)
        self.backward_rnn = rnn(input_size, config.hidden_size // 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """`x` `[S, B, D]` to `[S, B, H]`."""
        x = self.norm(x)
        # Reversing by true length keeps padding out of both passes without packing, which is slow.
        from_left = self.forward_rnn(x)[0]
        from_right = rows.reverse(self.backward_rnn(rows.reverse(x))[0])
        return self.dropout(torch.cat([from_left, from_right], dim=-1))


class ConvolutionLayer(nn.Module):
    """LayerNorm, a gate, one filter a channel over neighbouring tokens, and a projection, beside the way past them."""

    def __init__(self, config: BidirSeq2SeqConfig, input_size: int):
        super().__init__()
        size = config.hidden_size
        self.resize = _resize(input_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.gate = nn.Linear(size, 2 * size)
        # Over a picture, time high and the batch wide: channels then come last in memory, as they stand here, which
        # on a CPU takes a tenth of the time of a convolution over series.
        kernel_size = config.encoder_kernel_size
        self.convolution = nn.Conv2d(size, size, (kernel_size, 1), padding=(kernel_size // 2, 0), groups=size)
        self.output = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """`x` `[S, B, D]` to `[S, B, H]`."""
        x = self.resize(x)
        # Zeros are what the convolution reads beyond the ends of a row that stands alone.
        gated = F.glu(self.gate(self.norm(x)), dim=-1) * rows.is_token
        seen = self.convolution(gated[None].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[0]
        return x + self.dropout(self.output(F.silu(seen)))


class SelfAttentionLayer(nn.Module):
    """Attention of every token to every token, and two linear layers, beside the way past them.

    Positions enter as rotations of queries and keys, so that attention goes by distances.
    """

    def __init__(self, config: BidirSeq2SeqConfig, input_size: int):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.head_size = config.num_attention_heads, config.attention_head_size
        width = self.num_heads * self.head_size
        self.resize = _resize(input_size, size)
        self.attention_norm, self.norm = (nn.LayerNorm(size, eps=config.layer_norm_eps) for _ in range(2))
        self.query, self.key, self.value = (nn.Linear(size, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, size, bias=False)
        self.wide = nn.Linear(size, config.encoder_ffn_dim)
        self.narrow = nn.Linear(self.wide.out_features, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """`x` `[S, B, D]` to `[S, B, H]`."""
        x = self.resize(x)
        x = x + self.dropout(self._attend(self.attention_norm(x), rows))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm(x)))))

    def _attend(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        queries, keys, values = (
            project(x).unflatten(-1, (self.num_heads, self.head_size))
            for project in (self.query, self.key, self.value)
        )
        queries, keys, values = (part.permute(1, 2, 0, 3) for part in (rotate(queries), rotate(keys), values))
        may_read = rows.is_token.permute(1, 2, 0)[:, :, None]
        # A query that may read nothing, as of an empty document, has no defined result.
        context = attention(queries, keys, values, may_read | ~may_read.any(-1, keepdim=True))
        return self.output(context.permute(2, 0, 1, 3).flatten(-2))


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Turns pairs of channels of `[S, B, N, D]`, D even, by angles that grow with the position.

    Products of two such vectors go by their distance (https://arxiv.org/abs/2104.09864).
    """
    length, half = len(x), x.shape[-1] // 2
    speeds = 10_000 ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None, None, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.split(half, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


ENCODER_LAYERS = {"rnn": EncoderLayer, "cnn": ConvolutionLayer, "self_attention": SelfAttentionLayer}


def _resize(input_size: int, size: int) -> nn.Module:
    return nn.Identity() if input_size == size else nn.Linear(input_size, size)


class _Permute(torch.autograd.Function):
    """Permutes rows; the gradient goes back by a lookup too, where autograd's own would add up into zeros."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inverse, index)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Permute.apply(grad, *ctx.saved_tensors), None, None


def _permute(x: torch.Tensor, index: torch.LongTensor, inverse: torch.LongTensor) -> torch.Tensor:
    """`x` `[S, B, D]` with each row's positions permuted by `index` `[S, B]`, whose inverse is given."""
    rows = torch.arange(x.shape[1], device=x.device)
    index, inverse = ((positions * x.shape[1] + rows).flatten() for positions in (index, inverse))
    return _Permute.apply(x.flatten(0, 1), index, inverse).view(x.shape)


__all__ = ["ENCODER_LAYERS", "RNN_CLASSES", "ConvolutionLayer", "EncoderLayer", "Rows", "SelfAttentionLayer", "rotate"]
