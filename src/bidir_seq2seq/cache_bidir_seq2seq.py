"""What a decoder remembers between two generated tokens: a recurrent state, not a growing list of keys.

Letters: B documents, R decoder rows (R = B * G, G hypotheses of one document in a row), S source length, H hidden
size, N attention heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import Seq2SeqModelOutput

if TYPE_CHECKING:
    from .output_bidir_seq2seq import Words

# What transformers calls a cache, in what models return and are given: from 5.24 on "cache".
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(Seq2SeqModelOutput)} else "past_key_values"


def takes_cache(function: Callable) -> Callable:
    """Gives a function of `past_key_values` the newer name as well: `cache`.

    Raises:
        ValueError: When called with both.
    """

    @wraps(function)
    def with_either(*args: Any, **kwargs: Any) -> Any:
        if (cache := kwargs.pop("cache", None)) is not None:
            if kwargs.get("past_key_values") is not None:
                raise ValueError("cache and past_key_values are two names of the same: give one of them")
            kwargs["past_key_values"] = cache
        return function(*args, **kwargs)

    return with_either


@dataclass
class SourceMemory:
    """What one decoder reads of the documents, computed once per document.

    Attributes:
        modulations: For each of the decoder's LayerNorms its (scale, shift), each `[B, 1, D_layer]`.
        keys: Source attention keys `[B, N, S, D]`, or `None` without source attention.
        values: Source attention values `[B, N, S, D]`, or `None`.
        mask: `[B, 1, 1, S]` bool, true where there is a token.
    """

    modulations: list[tuple[torch.Tensor, torch.Tensor]]
    keys: torch.Tensor | None
    values: torch.Tensor | None
    mask: torch.Tensor


class RecurrentStateLayer(CacheLayerMixin):
    """State of one recurrent layer: `(h, c)` for an LSTM, `(h,)` for a GRU, each `[1, R, H]`.

    Attributes:
        state: The present state, `None` before the first token.
        record_past: Whether the states that were are kept, so that `crop` can go back to one of them; the layer must
            then be advanced a token at a time.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[torch.Tensor, ...] | None = None
        self.seq_length = 0
        self.record_past = False
        self._past_states: list[tuple[torch.Tensor, ...] | None] = []

    def advance(self, state: tuple[torch.Tensor, ...], num_tokens: int) -> None:
        """Replaces the state by the one `num_tokens` later."""
        if self.record_past:
            assert num_tokens == 1, "a recorded past has one state per token"
            self._past_states.append(self.state)
        self.state = state
        self.seq_length += num_tokens
        self.is_initialized = True

    def activate_past_recording(self) -> None:
        """From here on the past can be gone back to: assisted generation tries tokens that it may take back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: If that is more than were recorded, or not a negative number or 0.
        """
        if not -len(self._past_states) <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop({tokens_to_remove}) takes a number from {-len(self._past_states)} (the states recorded since "
                "activate_past_recording) to 0"
            )
        if tokens_to_remove:
            self.state = self._past_states[tokens_to_remove]
            del self._past_states[tokens_to_remove:]
            self.seq_length += tokens_to_remove

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing to allocate: the first `advance` brings the state."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Not an attention layer.

        Raises:
            NotImplementedError: Always; a recurrent layer is moved by `advance`.
        """
        raise NotImplementedError("a recurrent layer has no keys and values: call advance(state, num_tokens)")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key length and offset of an attention mask over the decoder's own past."""
        return self.seq_length + query_length, 0

    def get_seq_length(self) -> int:
        """Number of tokens read."""
        return self.seq_length

    def get_max_length(self) -> int:
        """-1: a recurrent state has no maximum."""
        return -1

    def reset(self) -> None:
        """Forgets everything read."""
        self.state, self.seq_length, self.is_initialized = None, 0, False
        self._past_states.clear()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row r continues hypothesis `beam_idx[r]`; `beam_idx` is `[R]`. What was recorded before is gone."""
        self._past_states.clear()
        if self.state is not None:
            self.state = tuple(part.index_select(1, beam_idx.to(part.device)) for part in self.state)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes `repeats` rows in a row."""
        self._past_states.clear()
        if self.state is not None:
            self.state = tuple(part.repeat_interleave(repeats, dim=1) for part in self.state)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        self.reorder_cache(indices)


class BidirSeq2SeqCache(Cache):
    """One decoder's past: its recurrent states, and what it reads of the source.

    Reordering touches the states only: hypotheses change places within a document, whose memory they share.

    Attributes:
        memory: The decoder's `SourceMemory`, filled at the first step.
        words: What makes words of features about the documents, filled by the model's head.
        written: `[R, t]`, the tokens read so far; kept by a model that copies.
    """

    def __init__(self, num_layers: int):
        super().__init__(layers=[RecurrentStateLayer() for _ in range(num_layers)])
        self.memory: SourceMemory | None = None
        self.words: Words | None = None
        self.written: torch.LongTensor | None = None

    def read(self, ids: torch.LongTensor) -> torch.LongTensor:
        """Remembers tokens `[R, T]`; all of them so far, `[R, t]`."""
        self.written = ids if self.written is None else torch.cat([self.written, ids], dim=1)
        return self.written

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Row r continues hypothesis `beam_idx[r]`; `beam_idx` is `[R]`."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row becomes `repeats` rows in a row."""
        super().batch_repeat_interleave(repeats)
        if self.written is not None:
            self.written = self.written.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`, `[R]`."""
        super().batch_select_indices(indices)
        self._select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last `-tokens_to_remove` tokens."""
        super().crop(tokens_to_remove)
        if self.written is not None:
            self.written = self.written[:, : self.get_seq_length()]

    def reset(self) -> None:
        """Forgets everything read."""
        super().reset()
        self.written = None

    def _select(self, rows: torch.LongTensor) -> None:
        if self.written is not None:
            self.written = self.written.index_select(0, rows.to(self.written.device))


__all__ = ["CACHE_NAME", "BidirSeq2SeqCache", "RecurrentStateLayer", "SourceMemory", "takes_cache"]
