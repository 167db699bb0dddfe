"""How a source is read: by layers of recurrent cells, of convolutions or of self-attention, or by a pretrained model.

Letters: B batch, S source length, H hidden size, N attention heads, D head size. Time comes first, as recurrent
kernels want it, and each row's tokens stand before its padding, wherever that stood: so a row's states depend on its
tokens alone.

A pretrained model reads pieces of its own tokenizer, P of them, and each of our tokens takes the state of the piece
that it stands in: decoders, prior and copies know our tokens alone.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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


class ForEachDirection(nn.Module):
    """A module for each of two halves of the channels, which know nothing of each other: two encoders in one."""

    def __init__(self, l2r: nn.Module, r2l: nn.Module):
        super().__init__()
        self.l2r, self.r2l = l2r, r2l

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        """`x` `[..., 2D]`, and what both modules are told beside it, to `[..., 2H]`."""
        left, right = x.chunk(2, dim=-1)
        return torch.cat([self.l2r(left, *args), self.r2l(right, *args)], dim=-1)


ENCODER_LAYERS = {"rnn": EncoderLayer, "cnn": ConvolutionLayer, "self_attention": SelfAttentionLayer}

# What a pretrained encoder is told of a source, beside our tokens; padded with zeros.
PIECE_INPUTS = ("encoder_input_ids", "encoder_attention_mask", "encoder_positions")
SOURCE_TOKENIZER_NAME = "source_tokenizer.json"
# Tokenizers without a limit say a huge one.
MAX_PIECES = 10**9
# Of a pretrained model's config: where it came from, and what is decided anew whenever it is loaded.
_NOT_KEPT = ("_name_or_path", "architectures", "dtype", "transformers_version", "auto_map")


class PretrainedReader(nn.Module):
    """An encoder of transformers, and a projection of its states to our width."""

    def __init__(self, config: BidirSeq2SeqConfig):
        super().__init__()
        self.model = encoder_of(AutoModel.from_config(AutoConfig.for_model(**config.encoder_config)))
        self.output = nn.Linear(self.model.config.hidden_size, config.hidden_size)

    def train(self, mode: bool = True) -> PretrainedReader:
        """As every module's; what is frozen reads without dropout."""
        super().train(mode)
        self.model.train(mode and any(weight.requires_grad for weight in self.model.parameters()))
        return self

    def forward(
        self,
        encoder_input_ids: torch.LongTensor | None,
        encoder_attention_mask: torch.Tensor | None,
        encoder_positions: torch.LongTensor | None,
    ) -> torch.Tensor:
        """States of our tokens, `[B, S, H]`.

        Args:
            encoder_input_ids: `[B, P]`, ids of the pretrained model.
            encoder_attention_mask: `[B, P]`, 1 at pieces, which may stand on either side of the padding.
            encoder_positions: `[B, S]`, which piece of its row each of our tokens stands in.

        Raises:
            ValueError: If one is missing.
        """
        if encoder_input_ids is None or encoder_attention_mask is None or encoder_positions is None:
            raise ValueError(
                f"a model with encoder_type='pretrained' needs {', '.join(PIECE_INPUTS)}: take them from its "
                "encode_sources(tokenizer, texts)"
            )
        mask = encoder_attention_mask.bool()
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        ids, mask = encoder_input_ids.gather(1, order), mask.gather(1, order)
        # A row without any piece is read as it is; nobody reads what comes of it.
        mask = mask | ~mask.any(1, keepdim=True)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states = self.output(states.to(self.output.weight.dtype))
        return states.gather(1, encoder_positions[..., None].expand(-1, -1, states.shape[-1]))


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model of transformers that reads, without the layer for a vector of the whole text."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def kept_config(config: PreTrainedConfig) -> dict[str, Any]:
    """A pretrained model's config as it is kept inside ours."""
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_KEPT}


def source_tokenizer_of(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Tokenizer:
    """What cuts texts into a pretrained model's pieces, as one file holds it; longer texts than it reads are cut.

    Raises:
        ValueError: If the tokenizer does not tell where in a text its pieces stand.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer has no tokenizer.json, and does not tell where in a text its "
            "pieces stand: use an encoder with a fast tokenizer"
        )
    source_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    source_tokenizer.no_padding()
    source_tokenizer.no_truncation()
    positions = getattr(config, "max_position_embeddings", None)
    # Models whose padding has the id 1 count positions from behind it.
    positions = sys.maxsize if positions is None else positions - 2 * (config.pad_token_id == 1)
    if (limit := min(tokenizer.model_max_length, positions)) < MAX_PIECES:
        source_tokenizer.enable_truncation(limit)
    return source_tokenizer


def readable(source_tokenizer: Tokenizer, text: str) -> str:
    """As much of a text as a pretrained model reads."""
    encoding = _cut(source_tokenizer, text)
    return text[: max((end for _, end in encoding.offsets), default=0)] if encoding.overflowing else text


def pieces_of(source_tokenizer: Tokenizer, text: str, places: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """What a pretrained model is told of a text, but for padding.

    Args:
        source_tokenizer: Cuts it into pieces.
        text: A text, of which as much is read as our tokens reach.
        places: Where our tokens begin and end in it; `(0, 0)` for those that stand nowhere, such as an end.

    Returns:
        The rows of `PIECE_INPUTS`.
    """
    encoding = _cut(source_tokenizer, text[: max((end for _, end in places), default=0)])
    real = [(start, index) for index, (start, end) in enumerate(encoding.offsets) if end > start]
    # A text of which its normalizer leaves nothing is read as padding.
    ids, mask = encoding.ids or [0], encoding.attention_mask or [0]
    starts, last = [start for start, _ in real], len(ids) - 1
    positions = []
    for start, end in places:
        # White space that no piece holds belongs to the piece before it.
        piece = max(bisect_right(starts, start) - 1, 0)
        positions.append(real[piece][1] if end > start and real else last)
    return dict(zip(PIECE_INPUTS, (ids, mask, positions)))


def places_of(offsets: Sequence[tuple[int, int]], ids: Sequence[int], end_id: int | None) -> list[tuple[int, int]]:
    """Where the tokens of a text stand in it, of which the last may have been cut off, and an end put in their place.

    Args:
        offsets: Of the tokens before they were cut.
        ids: Those that are left.
        end_id: That of the end, which stands nowhere: `(0, 0)`.
    """
    places = [tuple(place) for place in offsets[: len(ids)]]
    if ids and ids[-1] == end_id:
        places = [*places[: len(ids) - 1], (0, 0)]
    return places


def _cut(source_tokenizer: Tokenizer, text: str) -> Any:
    # Somebody's "[SEP]" is text.
    source_tokenizer.encode_special_tokens = True
    return source_tokenizer.encode(text)


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


__all__ = [
    "ENCODER_LAYERS",
    "PIECE_INPUTS",
    "RNN_CLASSES",
    "SOURCE_TOKENIZER_NAME",
    "ConvolutionLayer",
    "EncoderLayer",
    "ForEachDirection",
    "PretrainedReader",
    "Rows",
    "SelfAttentionLayer",
    "encoder_of",
    "kept_config",
    "pieces_of",
    "places_of",
    "readable",
    "rotate",
    "source_tokenizer_of",
]
