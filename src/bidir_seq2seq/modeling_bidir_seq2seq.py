"""The model, top-down: layers, encoder, twin decoders, base model, and the model with its output layer.

Letters: B batch, S source length, T target length, V vocabulary, E embedding size, H hidden size, N attention heads,
D head size, A = N * D. Decoder rows are R = B * G: G hypotheses of one document stand in a row and share its memory.

The architecture is Su Jianlin's (https://kexue.fm/archives/5861 and https://kexue.fm/archives/6877); the twin
decoders follow Zhou, Zhang and Zong 2019 (https://arxiv.org/abs/1905.04847).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils import cached_file, can_return_tuple, logging

from .cache_bidir_seq2seq import CACHE_NAME, BidirSeq2SeqCache, RecurrentStateLayer, SourceMemory, takes_cache
from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .directions_bidir_seq2seq import IGNORE_INDEX, Direction, check_ids, directions_of, pack_labels
from .encoders_bidir_seq2seq import (
    ENCODER_LAYERS,
    PIECE_INPUTS,
    RNN_CLASSES,
    SOURCE_TOKENIZER_NAME,
    ForEachDirection,
    PretrainedReader,
    Rows,
    encoder_of,
    kept_config,
    pieces_of,
    readable,
    source_tokenizer_of,
)
from .generation_bidir_seq2seq import BidirSeq2SeqGenerationMixin
from .kernels_bidir_seq2seq import MatmulLinear, are_enabled, attention, is_plain, is_read_at_once, without_dropout
from .output_bidir_seq2seq import Copies, CopyAttention, SourcePrior, Words, Written
from .partner_bidir_seq2seq import Shown, as_written, visible, write_alone
from .steps_bidir_seq2seq import DecoderSteps, FastDecoderSteps

logger = logging.get_logger(__name__)

# Documents whose titles are read in one go where their probability is asked.
JUDGED_TOGETHER = 8


@dataclass
class BidirSeq2SeqEncoderOutput(BaseModelOutput):
    """What the decoders may know of the documents.

    Args:
        last_hidden_state: `[B, S, H]`, zero at padding; where each direction has an encoder of its own, `[B, S, 2H]`,
            left-to-right first.
        pooler_output: `[B, H]` or `[B, 2H]`, the maximum over unpadded positions; zero for an empty document.
        source_mask: `[B, S]` bool, true where there is a token.
        source_words: `[B, V]` bool, true for ids that occur in the document; `None` without prior.
        source_ids: `[B, S]`, for words to copy, V and above outside the vocabulary; `None` without copies.
    """

    pooler_output: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None
    source_words: torch.Tensor | None = None
    source_ids: torch.Tensor | None = None

    def select(self, documents: torch.LongTensor) -> BidirSeq2SeqEncoderOutput:
        """The same of some documents, `[n]`."""
        return type(self)(**{name: x[documents] for name, x in self.items() if isinstance(x, torch.Tensor)})


@dataclass
class BidirSeq2SeqModelOutput(Seq2SeqModelOutput):
    """`Seq2SeqModelOutput`, and the right-to-left decoder's features.

    Args:
        last_hidden_state: `[R, T, E]`, features of the only or left-to-right direction.
        r2l_last_hidden_state: `[R, T, E]`, features of the right-to-left direction when both ran.
    """

    r2l_last_hidden_state: torch.Tensor | None = None


@dataclass
class BidirSeq2SeqLMOutput(Seq2SeqLMOutput):
    """`Seq2SeqLMOutput`, and the right-to-left direction's logits.

    Args:
        loss: Mean cross-entropy per target token, averaged over the directions of the model.
        logits: `[R, T, V]`, the only or left-to-right direction.
        r2l_logits: `[R, T, V]`, the right-to-left direction in its own order (last token first) when both ran.
    """

    r2l_logits: torch.Tensor | None = None


class ModulatedLayerNorm(nn.Module):
    """LayerNorm whose scale and shift are computed from the document vector: y * (gamma + 1) + beta."""

    def __init__(self, condition_size: int, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        bottleneck = max(condition_size // 4, 1)
        self.shift, self.scale = (
            nn.Sequential(
                nn.Linear(condition_size, bottleneck, bias=True), nn.ReLU(), nn.Linear(bottleneck, hidden_size)
            )
            for _ in range(2)
        )

    def modulation(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, C]` to (scale, shift), each `[B, 1, D]`."""
        return self.scale(condition)[:, None] + 1, self.shift(condition)[:, None]

    def forward(self, x: torch.Tensor, modulation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """`x` is `[R, T, D]`, the modulation `[B, 1, D]`; returns `[R, T, D]`."""
        scale, shift = modulation
        # Rows of one document stand together, so folding them into time lets one modulation serve all.
        folded = F.layer_norm(x, (self.hidden_size,), eps=self.eps).reshape(scale.shape[0], -1, self.hidden_size)
        return torch.addcmul(shift, folded, scale).view(x.shape)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention without biases and without output projection."""

    def __init__(self, query_size: int, memory_size: int, num_heads: int, head_size: int):
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.query = MatmulLinear(query_size, num_heads * head_size, bias=False)
        self.key = MatmulLinear(memory_size, num_heads * head_size, bias=False)
        self.value = MatmulLinear(memory_size, num_heads * head_size, bias=False)

    def memory(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is attended to, `[..., M, memory_size]`, to keys and values, each `[..., N, M, D]`."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Reads the memory.

        Args:
            x: Queries `[..., Q, query_size]`.
            keys, values: `[..., N, M, D]`.
            mask: Bool, broadcast to `[..., N, Q, M]`; true may be read. Each query must be able to read something.
            need_weights: Whether to return the weights, which the fused kernel does not give.

        Returns:
            The context `[..., Q, A]`, and the weights `[..., N, Q, M]` or `None`.
        """
        queries = self._split(self.query(x))
        if need_weights:
            scores = queries @ keys.transpose(-1, -2) * self.head_size**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1)
            context = weights @ values
        else:
            weights, context = None, attention(queries, keys, values, mask)
        return context.transpose(-2, -3).flatten(-2), weights

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(-2, -3)


class Encoder(nn.Module):
    """Source ids to hidden states, pooled document vector and the set of source words."""

    main_input_name = "input_ids"

    def __init__(self, config: BidirSeq2SeqConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        sizes = [config.embedding_size] + [config.hidden_size] * (config.encoder_layers - 1)
        self.pretrained = self.resize = None
        if config.encoder_type == "pretrained":
            self.pretrained = PretrainedReader(config)
            # One piece may hold several of our tokens, which their own vectors tell apart.
            self.resize = nn.Linear(config.embedding_size, config.hidden_size)
            sizes = []
        self.layers = nn.ModuleList(
            self._for_each(ENCODER_LAYERS[config.encoder_type], config, size) for size in sizes
        )
        self.norm = None
        if config.encoder_type != "rnn":
            # Layers that add to what they read need one at the end.
            self.norm = self._for_each(nn.LayerNorm, config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def _for_each(self, make: Callable[..., nn.Module], *args: Any) -> nn.Module:
        """A module, or one for each direction's encoder."""
        return make(*args) if self.config.share_encoder else ForEachDirection(make(*args), make(*args))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        extended_input_ids: torch.LongTensor | None = None,
        encoder_input_ids: torch.LongTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_positions: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BidirSeq2SeqEncoderOutput:
        """Encodes documents. Padding may stand on either side, and anywhere else.

        Args:
            input_ids: `[B, S]` token ids.
            attention_mask: `[B, S]`, 1 at tokens, 0 at padding; default: wherever `input_ids` is not the pad id.
            inputs_embeds: `[B, S, E]` instead of `input_ids`; the prior then knows no source word, and nothing is
                copied unless `extended_input_ids` says what stands there.
            output_hidden_states: Whether to return embeddings and every layer's output.
            extended_input_ids: `[B, S]`, for a model that copies: `input_ids`, but each word outside the vocabulary by
                an id of its own from V on, which counts within its row. Default: `input_ids`.
            encoder_input_ids, encoder_attention_mask: `[B, P]`, for a pretrained encoder: its own ids of the same
                text, and 1 where there is one.
            encoder_positions: `[B, S]`, which of these each of our tokens stands in.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given, or an id is outside the
                vocabulary (checked on CPU only: on other devices it would stall the device).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("the encoder needs exactly one of input_ids and inputs_embeds")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if input_ids is not None:
            check_ids("input_ids", input_ids, self.config.vocab_size)
        given = input_ids if input_ids is not None else inputs_embeds
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(
                f"input_ids of shape {tuple(input_ids.shape)}: one row of ids for each document, [B, S], is needed; a "
                "tokenizer makes them of a list of texts"
            )
        mask = _as_mask(attention_mask, given.shape[:2])
        if given.shape[1] == 0:
            # An empty batch of documents becomes one padded position, which everything below knows to ignore.
            given = given.new_full((given.shape[0], 1, *given.shape[2:]), self.config.pad_token_id)
            mask = given.new_zeros(given.shape[:2], dtype=torch.bool)
        if input_ids is not None:
            mask = given != self.config.pad_token_id if mask is None else mask
        elif mask is None:
            mask = given.new_ones(given.shape[:2], dtype=torch.bool)

        rows = Rows.of(mask)
        if input_ids is not None:
            x = self.embed_tokens(given.T.gather(0, rows.order))
        else:
            x = rows.arrange(given)
        if not self.config.share_encoder:
            x = torch.cat([x, x], dim=-1)
        x = self.dropout(x)
        hidden_states = []
        if self.pretrained is not None:
            if encoder_input_ids is not None:
                check_ids("encoder_input_ids", encoder_input_ids, self.pretrained.model.config.vocab_size)
            states = self.pretrained(encoder_input_ids, encoder_attention_mask, encoder_positions)
            x = self.resize(x) + rows.arrange(states)
        for layer in self.layers:
            if output_hidden_states:
                # There and back, so that what is returned lies on the way to the result and has gradients.
                hidden_states.append(rows.restore(x))
                x = rows.arrange(hidden_states[-1])
            x = layer(x, rows)
        x = x if self.norm is None else self.norm(x)
        # Sums and products, as filling in by a mask is slow where the mask has to be broadcast.
        is_token = rows.is_token
        pooled = (x + torch.zeros_like(is_token, dtype=x.dtype).masked_fill_(~is_token, float("-inf"))).amax(0)
        hidden_states.append(rows.restore(x * is_token))
        return BidirSeq2SeqEncoderOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            pooler_output=pooled.masked_fill(~mask.any(1, keepdim=True), 0),
            **self._source(given if input_ids is not None else None, mask, extended_input_ids),
        )

    def complete(
        self,
        outputs: BaseModelOutput | tuple,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        extended_input_ids: torch.LongTensor | None = None,
    ) -> BidirSeq2SeqEncoderOutput:
        """Of states that somebody else has kept, as other models of transformers take them, our own output.

        Args:
            outputs: With a `last_hidden_state` such as ours, or that as the first of a tuple.
            input_ids, attention_mask, extended_input_ids: `[B, S]`, as for `forward`; without ids there is no prior
                for any word, and nothing to copy.
        """
        if isinstance(outputs, BidirSeq2SeqEncoderOutput):
            return outputs
        states = outputs[0]
        mask = _as_mask(attention_mask, states.shape[:2])
        if mask is None:
            mask = states.new_ones(states.shape[:2], dtype=torch.bool)
            mask = mask if input_ids is None else input_ids != self.config.pad_token_id
        pooled = states.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return BidirSeq2SeqEncoderOutput(
            last_hidden_state=states * mask[..., None],
            hidden_states=getattr(outputs, "hidden_states", None),
            pooler_output=pooled.masked_fill(~mask.any(1, keepdim=True), 0),
            **self._source(input_ids, mask, extended_input_ids),
        )

    def _source(self, ids: torch.Tensor | None, mask: torch.Tensor, extended_ids: torch.Tensor | None) -> dict:
        return {
            "source_mask": mask,
            "source_words": self._source_words(ids, mask),
            "source_ids": self._source_ids(ids, extended_ids),
        }

    def _source_ids(self, ids: torch.Tensor | None, extended_ids: torch.Tensor | None) -> torch.Tensor | None:
        if not self.config.use_copy or extended_ids is None or extended_ids.shape[1] == 0:
            return ids if self.config.use_copy else None
        if ids is not None and ids.shape != extended_ids.shape:
            raise ValueError(
                f"extended_input_ids of shape {tuple(extended_ids.shape)} beside input_ids of {tuple(ids.shape)}: "
                "each token has both"
            )
        return extended_ids

    def _source_words(self, ids: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor | None:
        if not self.config.use_prior:
            return None
        words = mask.new_zeros(mask.shape[0], self.config.vocab_size)
        if ids is not None:
            words.scatter_(1, torch.where(mask, ids, self.config.pad_token_id), True)
        names = ("pad_token_id",)
        if not self.config.prior_special_tokens:
            names += ("unk_token_id", "bos_token_id", "eos_token_id")
        words[:, [getattr(self.config, name) for name in names]] = False
        return words


class Decoder(nn.Module):
    """One direction: modulated recurrent layers, then attention to the source and to the twin, then features."""

    def __init__(self, config: BidirSeq2SeqConfig, twin_memory_size: int | None, half: int | None = None):
        super().__init__()
        # Which half of the states it reads, where there are those of two encoders.
        self.half = half
        heads = (config.num_attention_heads, config.attention_head_size)
        sizes = [config.embedding_size] + [config.hidden_size] * config.decoder_layers
        self.norms = nn.ModuleList(ModulatedLayerNorm(config.hidden_size, s, config.layer_norm_eps) for s in sizes)
        rnn = RNN_CLASSES[config.rnn_type]
        self.is_lstm = config.rnn_type == "lstm"
        self.rnns = nn.ModuleList(rnn(size, config.hidden_size, batch_first=True) for size in sizes[:-1])
        self.source_attention = (
            MultiHeadAttention(config.hidden_size, config.hidden_size, *heads) if config.use_attention else None
        )
        self.twin_attention = (
            MultiHeadAttention(config.hidden_size, twin_memory_size, *heads) if twin_memory_size is not None else None
        )
        # What the features are made of: the decoder's h, the twin's context and the source's.
        self.feature_sizes = (
            config.hidden_size,
            heads[0] * heads[1] if twin_memory_size is not None else 0,
            heads[0] * heads[1] if config.use_attention else 0,
        )
        self.feature = MatmulLinear(sum(self.feature_sizes), config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)

    def own(self, states: torch.Tensor) -> torch.Tensor:
        """Of the states of all encoders, `[..., H]` or `[..., 2H]`, those that this decoder reads, `[..., H]`."""
        return states if self.half is None else states.chunk(2, dim=-1)[self.half]

    def read_source(self, encoder_outputs: BidirSeq2SeqEncoderOutput) -> SourceMemory:
        """What this decoder needs of B encoded documents; compute it once per document."""
        keys = values = None
        mask, pooled = encoder_outputs.source_mask, self.own(encoder_outputs.pooler_output)
        if self.source_attention is not None:
            keys, values = self.source_attention.memory(self.own(encoder_outputs.last_hidden_state))
            # An empty document is read as it is, all zeros: a query that may read nothing has no defined result.
            mask = mask | ~mask.any(1, keepdim=True)
        return SourceMemory(
            modulations=[norm.modulation(pooled) for norm in self.norms],
            keys=keys,
            values=values,
            mask=mask[:, None, None],
        )

    def recur(
        self, embeds: torch.Tensor, memory: SourceMemory, cache: BidirSeq2SeqCache | None = None
    ) -> list[torch.Tensor]:
        """Reads target tokens.

        Args:
            embeds: `[R, T, E]`.
            memory: Of the B documents that the rows belong to.
            cache: Where the recurrent states come from and go to; without it they start at zero.

        Returns:
            The embeddings `[R, T, E]` and every layer's output `[R, T, H]`; the last one is the decoder's h.
        """
        x = self.dropout(embeds)
        hidden_states = [x]
        for index, rnn in enumerate(self.rnns):
            x = self.norms[index](x, memory.modulations[index])
            x = self.dropout(rnn(x)[0] if cache is None else self._read_on(rnn, x, cache.layers[index]))
            hidden_states.append(x)
        hidden_states[-1] = self.norms[-1](x, memory.modulations[-1])
        return hidden_states

    def _read_on(self, rnn: nn.RNNBase, x: torch.Tensor, past: RecurrentStateLayer) -> torch.Tensor:
        if x.shape[1] > 1 and not past.record_past:
            x, state = rnn(x, past.state if self.is_lstm or past.state is None else past.state[0])
            past.advance(state if self.is_lstm else (state,), x.shape[1])
            return x
        # A layer's own kernel rearranges all its weights at each call, which for one token is most of the time, and
        # does not tell the states in between, which a past that may be taken back needs.
        read = self._cell if is_plain(rnn) else self._module
        outputs = []
        for token in x.unbind(1):
            past.advance(read(rnn, token, past.state), 1)
            outputs.append(past.state[0][0])
        return torch.stack(outputs, dim=1)

    def _cell(
        self, rnn: nn.RNNBase, token: torch.Tensor, state: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        """One token `[R, inputs]` by the weights of a plain layer; states are `[1, R, H]`, `None` before the first."""
        if state is None:
            state = (token.new_zeros(1, len(token), rnn.hidden_size),) * (2 if self.is_lstm else 1)
        before = tuple(part[0] for part in state)
        cell = torch.lstm_cell if self.is_lstm else torch.gru_cell
        after = cell(token, before if self.is_lstm else before[0], *rnn.all_weights[0])
        return tuple(part[None] for part in (after if self.is_lstm else (after,)))

    def _module(
        self, rnn: nn.RNNBase, token: torch.Tensor, state: tuple[torch.Tensor, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        """As `_cell`, by the layer itself, whatever has been made of it."""
        _, after = rnn(token[:, None], state if self.is_lstm or state is None else state[0])
        return after if self.is_lstm else (after,)

    def attend_source(
        self, hidden: torch.Tensor, memory: SourceMemory, need_weights: bool = False
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """`hidden` `[R, T, H]` to the source context `[R, T, A]` and, if needed, its weights `[R, N, T, S]`."""
        if self.source_attention is None:
            return None, None
        rows, length, _ = hidden.shape
        folded = hidden.reshape(memory.mask.shape[0], -1, hidden.shape[-1])
        context, weights = self.source_attention(folded, memory.keys, memory.values, memory.mask, need_weights)
        if need_weights:
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).reshape(rows, weights.shape[1], length, -1)
        return context.view(rows, length, -1), weights

    def concatenate(
        self, hidden: torch.Tensor, twin_context: torch.Tensor | None, source_context: torch.Tensor | None
    ) -> torch.Tensor:
        """`[..., H]`, `[..., A]`, `[..., A]` to one vector; no twin context means zeros in its place."""
        if twin_context is None and self.twin_attention is not None:
            twin_context = hidden.new_zeros(*hidden.shape[:-1], self.feature_sizes[1])
        return torch.cat([part for part in (hidden, twin_context, source_context) if part is not None], dim=-1)

    def features(self, concatenated: torch.Tensor) -> torch.Tensor:
        """The concatenation to the features `[..., E]` that the output layer reads."""
        return F.leaky_relu(self.feature(self.dropout(concatenated)), 0.2)


class BidirSeq2SeqPreTrainedModel(PreTrainedModel):
    """Initialisation and naming shared by the models below."""

    config_class = BidirSeq2SeqConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # A recurrent layer keeps one vector per token, so recomputing them would save little memory for much time.
    supports_gradient_checkpointing = False
    # Cuts texts into the pieces of a pretrained encoder.
    source_tokenizer: Tokenizer | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As every model's, with the `source_tokenizer` of a pretrained encoder.

        Raises:
            ValueError: If that is missing.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.encoder_type == "pretrained":
            asked = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
            where = {name: kwargs[name] for name in asked if kwargs.get(name) is not None}
            model.source_tokenizer = _load_source_tokenizer(pretrained_model_name_or_path, **where)
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """As every model's, with the `source_tokenizer` of a pretrained encoder, and weights that others may read."""
        if self.source_tokenizer is not None and is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.source_tokenizer.save(str(Path(save_directory) / SOURCE_TOKENIZER_NAME))
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        # safetensors 0.8 lets the owner alone read what it writes; the other files go by the umask.
        if is_main_process:
            for weights in Path(save_directory).glob("model*.safetensors"):
                shutil.copymode(Path(save_directory) / "config.json", weights)

    def encode_sources(
        self, tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """What `forward` and `generate` need of texts. Words outside the vocabulary are read, but not copied: only the
        pipeline knows which they are when a title is written.

        Args:
            tokenizer: The model's, a fast one.
            texts: Those to read, or one; what is too long for the tokenizer or a pretrained encoder is cut.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`; for a pretrained encoder also `encoder_input_ids` and
            `encoder_attention_mask` `[B, P]` and `encoder_positions` `[B, S]`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if self.source_tokenizer is not None:
            texts = [readable(self.source_tokenizer, text) for text in texts]
        # Somebody's "[END]" is text, not an end.
        settings = {"padding": True, "truncation": True, "split_special_tokens": True}
        encoding = tokenizer(texts, **settings, return_offsets_mapping=True)
        batch = {name: torch.tensor(encoding[name], device=self.device) for name in ("input_ids", "attention_mask")}
        if self.source_tokenizer is not None:
            rows = [pieces_of(self.source_tokenizer, *row) for row in zip(texts, encoding["offset_mapping"])]
            for name in PIECE_INPUTS:
                ids = [torch.tensor(row[name], device=self.device) for row in rows]
                batch[name] = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return batch

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keras's own scheme, under which the published programs learn: Glorot, orthogonal, forget gate 1."""
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.05, 0.05)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.LSTM, nn.GRU)):
            self._init_rnn(module)
        elif isinstance(module, SourcePrior):
            init.constant_(module.log_scale, math.log(self.config.prior_initial_scale))
            init.zeros_(module.shift)
            init.zeros_(module.title_counts)
        elif isinstance(module, CopyAttention):
            # After two words that stand side by side in the source the third is e**4 times as likely as others.
            init.zeros_(module.follow.weight)
            init.constant_(module.follow.bias, 2.0)

    @staticmethod
    def _init_rnn(rnn: nn.RNNBase) -> None:
        size = rnn.hidden_size
        # One [D, gates * H] kernel in Keras, so Glorot's fan counts all gates.
        init.xavier_uniform_(rnn.weight_ih_l0)
        recurrent = torch.empty_like(rnn.weight_hh_l0)
        for gate in recurrent.split(size):
            init.orthogonal_(gate)
        init.copy_(rnn.weight_hh_l0, recurrent)
        bias = torch.zeros_like(rnn.bias_ih_l0)
        if isinstance(rnn, nn.LSTM):
            bias[size : 2 * size] = 1
        init.copy_(rnn.bias_ih_l0, bias)
        init.zeros_(rnn.bias_hh_l0)


class BidirSeq2SeqModel(BidirSeq2SeqPreTrainedModel):
    """Encoder and decoders without output layer."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^prior\.", r"^copy_attention\."]

    def __init__(self, config: BidirSeq2SeqConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = self.r2l_decoder = None
        both = config.decoder_directions == "both"
        twin_memory_size = config.hidden_size if both else None
        halves = (None, None) if config.share_encoder else (0, 1)
        if config.decoder_directions != "r2l":
            self.decoder = Decoder(config, twin_memory_size, halves[0])
        if config.decoder_directions != "l2r":
            if both and config.twin_memory == "features":
                twin_memory_size = self.decoder.feature.in_features
            self.r2l_decoder = Decoder(config, twin_memory_size, halves[1])
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding shared by source and both decoders."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the shared embedding."""
        self.encoder.embed_tokens = value

    def get_encoder(self, *args: Any, **kwargs: Any) -> Encoder:
        """The encoder."""
        return self.encoder

    def direction_decoder(self, direction: str) -> Decoder:
        """The decoder of `"l2r"` or `"r2l"`.

        Raises:
            ValueError: If the model has no such decoder.
        """
        decoder = {"l2r": self.decoder, "r2l": self.r2l_decoder}.get(direction)
        if decoder is None:
            raise ValueError(
                f"decoding_direction={direction!r}: this model has decoder_directions="
                f"{self.config.decoder_directions!r}; choose that, or train with decoder_directions='both'"
            )
        return decoder

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        r2l_decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: BidirSeq2SeqEncoderOutput | None = None,
        past_key_values: BidirSeq2SeqCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        decoding_direction: str | None = None,
        use_twin: bool | tuple[torch.LongTensor, torch.LongTensor] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        extended_input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BidirSeq2SeqModelOutput:
        """Encodes the source and runs one decoder, or both over known targets.

        Args:
            input_ids: `[B, S]` source ids.
            attention_mask: `[B, S]`, 1 at tokens.
            decoder_input_ids: `[R, T]` target ids in the order of `decoding_direction`, with its start id first.
            decoder_attention_mask: Accepted and not needed: targets are padded on the right.
            r2l_decoder_input_ids: `[R, T]` target ids from the right; with it both decoders run.
            encoder_outputs: Instead of `input_ids`; B documents for R = B * G rows.
            past_key_values: The past of the one direction that runs; also taken as `cache`, as transformers calls it
                from 5.24 on.
            inputs_embeds: `[B, S, E]` instead of `input_ids`.
            decoder_inputs_embeds: `[R, T, E]` instead of `decoder_input_ids`.
            decoding_direction: `"l2r"` or `"r2l"`: which decoder reads `decoder_input_ids` when one runs. Default:
                `"l2r"`, if the model has it.
            use_twin: Whether decoders that both run see each other. Default: in training yes (subject to
                `twin_dropout`); outside training only if the model has never learned without, as over known targets
                the twin shows each decoder its own answer. Two tensors say what each decoder has written as its twin
                sees it, from the left `[R, P]` and from the right, each in its own order with its start first; a row
                of padding shows nothing.
            use_cache: Whether to return the past of the one direction that runs.
            output_attentions: Whether to return the source attention weights `[R, N, T, S]`.
            output_hidden_states: Whether to return every layer's states.
            extended_input_ids: `[B, S]`, see [`Encoder.forward`], as for `encoder_input_ids` and what goes with them.

        Raises:
            ValueError: On contradictory or missing inputs.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        encoder_outputs = self.encode(
            input_ids,
            attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            extended_input_ids=extended_input_ids,
            **kwargs,
        )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError("the decoder needs decoder_input_ids (or labels, from which they are made)")
        given = decoder_input_ids if decoder_input_ids is not None else decoder_inputs_embeds
        if given.shape[0] == 0:
            raise ValueError("there are no rows in this batch: leave it out")
        if encoder_outputs.source_mask is not None and given.shape[0] % len(encoder_outputs.source_mask):
            raise ValueError(
                f"{given.shape[0]} rows of decoder inputs or labels for {len(encoder_outputs.source_mask)} documents: "
                "give as many rows for each document, those of one together"
            )

        if r2l_decoder_input_ids is not None:
            if past_key_values is not None:
                raise ValueError("past_key_values continues one direction; leave r2l_decoder_input_ids out")
            if decoding_direction not in (None, "both"):
                raise ValueError(
                    f"decoding_direction={decoding_direction!r} beside r2l_decoder_input_ids, with which both "
                    "decoders run: leave one of them out"
                )
            run = self._run_both(
                self._embed(decoder_input_ids, decoder_inputs_embeds),
                self._embed(r2l_decoder_input_ids, None),
                encoder_outputs,
                use_twin,
                output_attentions,
            )
            direction_outputs = {"r2l_last_hidden_state": run.pop("r2l_features")}
        else:
            direction = decoding_direction or ("r2l" if self.config.decoder_directions == "r2l" else "l2r")
            if direction == "both":
                raise ValueError(
                    "decoding_direction='both' without labels or r2l_decoder_input_ids: give either, or 'l2r' or "
                    "'r2l', the decoder that reads decoder_input_ids"
                )
            if use_cache and past_key_values is None:
                past_key_values = BidirSeq2SeqCache(self.config.decoder_layers)
            embeds = self._embed(decoder_input_ids, decoder_inputs_embeds)
            run = self._run_one(direction, embeds, encoder_outputs, past_key_values, output_attentions)
            direction_outputs = {CACHE_NAME: past_key_values}
        return BidirSeq2SeqModelOutput(
            last_hidden_state=run["features"],
            decoder_hidden_states=tuple(run["hidden_states"]) if output_hidden_states else None,
            cross_attentions=(run["weights"],) if run["weights"] is not None else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            **direction_outputs,
        )

    def encode(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        encoder_outputs: BaseModelOutput | tuple | None,
        past_key_values: BidirSeq2SeqCache | None,
        extended_input_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BidirSeq2SeqEncoderOutput:
        """What is known of the documents: what somebody has kept, nothing that a past does not know, or what is read.

        Args:
            input_ids, attention_mask, extended_input_ids: `[B, S]`, as for [`Encoder.forward`], which takes `kwargs`.
            encoder_outputs: What was read before.
            past_key_values: Where the decoders have read it before.

        Raises:
            ValueError: If that is a past of other models.
        """
        if not isinstance(past_key_values, BidirSeq2SeqCache | None):
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}, which holds no recurrent states: give the "
                "BidirSeq2SeqCache that an earlier step returned, or leave it out"
            )
        if encoder_outputs is not None:
            return self.encoder.complete(encoder_outputs, input_ids, attention_mask, extended_input_ids)
        if past_key_values is not None and past_key_values.memory is not None:
            return BidirSeq2SeqEncoderOutput()
        kwargs["return_dict"] = True
        return self.encoder(input_ids, attention_mask, extended_input_ids=extended_input_ids, **kwargs)

    def _embed(self, ids: torch.Tensor | None, embeds: torch.Tensor | None) -> torch.Tensor:
        if embeds is not None:
            return embeds
        if self.config.use_copy:
            return self._embed_words(ids)
        check_ids("decoder_input_ids", ids, self.config.vocab_size)
        return self.encoder.embed_tokens(ids)

    def _embed_words(self, ids: torch.LongTensor) -> torch.Tensor:
        # There is no vector for a word outside the vocabulary that has been copied.
        return self.encoder.embed_tokens(ids.where(ids < self.config.vocab_size, self.config.unk_token_id))

    def _run_one(
        self,
        direction: str,
        embeds: torch.Tensor,
        encoder_outputs: Any,
        cache: BidirSeq2SeqCache | None,
        need_weights: bool,
    ) -> dict:
        decoder = self.direction_decoder(direction)
        memory = cache.memory if cache is not None else None
        if memory is None:
            memory = decoder.read_source(encoder_outputs)
            if cache is not None:
                cache.memory = memory
        hidden_states = decoder.recur(embeds, memory, cache)
        source_context, weights = decoder.attend_source(hidden_states[-1], memory, need_weights)
        features = decoder.features(decoder.concatenate(hidden_states[-1], None, source_context))
        return {"features": features, "hidden_states": hidden_states, "weights": weights}

    def _run_both(
        self,
        l2r_embeds: torch.Tensor,
        r2l_embeds: torch.Tensor,
        encoder_outputs: Any,
        use_twin: bool | tuple[torch.LongTensor, torch.LongTensor] | None,
        need_weights: bool,
    ) -> dict:
        l2r, r2l = self.direction_decoder("l2r"), self.direction_decoder("r2l")
        l2r_memory, r2l_memory = l2r.read_source(encoder_outputs), r2l.read_source(encoder_outputs)
        l2r_states, r2l_states = l2r.recur(l2r_embeds, l2r_memory), r2l.recur(r2l_embeds, r2l_memory)
        l2r_hidden, r2l_hidden = l2r_states[-1], r2l_states[-1]
        l2r_source, weights = l2r.attend_source(l2r_hidden, l2r_memory, need_weights)
        r2l_source, _ = r2l.attend_source(r2l_hidden, r2l_memory)

        l2r_twin = r2l_twin = None
        if self._reads_twin if use_twin is None else use_twin:
            if isinstance(use_twin, tuple):
                shown = self._shown_own(len(l2r_hidden[0]), use_twin, (l2r_memory, r2l_memory))
            else:
                shown = self._shown_gold(l2r_hidden, r2l_hidden)
            l2r_shown, r2l_shown = shown
            l2r_twin = self._read_twin(l2r, l2r_hidden, r2l_shown)
            if self.config.twin_memory == "features":
                l2r_shown = replace(l2r_shown, states=l2r.concatenate(l2r_hidden, l2r_twin, l2r_source))
            r2l_twin = self._read_twin(r2l, r2l_hidden, l2r_shown)
        return {
            "features": l2r.features(l2r.concatenate(l2r_hidden, l2r_twin, l2r_source)),
            "r2l_features": r2l.features(r2l.concatenate(r2l_hidden, r2l_twin, r2l_source)),
            "hidden_states": l2r_states,
            "weights": weights,
        }

    @property
    def _reads_twin(self) -> bool:
        """Whether decoders that run over known targets read each other, if nothing is said."""
        return self.config.twin_partner != "none" and (self.training or self.config.twin_dropout == 0)

    def _shown_gold(self, l2r_hidden: torch.Tensor, r2l_hidden: torch.Tensor) -> tuple[Shown, Shown]:
        """Each decoder shows what it reads itself: step t sees what its twin has written when it writes t."""
        length = l2r_hidden.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=l2r_hidden.device).tril()
        keep = self._twin_keep(l2r_hidden)
        return Shown(l2r_hidden, mask, keep), Shown(r2l_hidden, mask, keep)

    def _shown_own(
        self,
        num_steps: int,
        partner_ids: tuple[torch.LongTensor, torch.LongTensor],
        memories: tuple[SourceMemory, SourceMemory],
    ) -> tuple[Shown, Shown]:
        """Each decoder shows what it has written by itself, `partner_ids`."""
        shown = []
        for name, ids, memory in zip(("l2r", "r2l"), partner_ids, memories):
            states = self.direction_decoder(name).recur(self._embed(ids, None), memory)[-1]
            has_partner = (ids[:, :1] != self.config.pad_token_id)[..., None].to(states.dtype)
            shown.append(Shown(states, visible(num_steps, ids, self.config.pad_token_id), has_partner))
        return shown[0], shown[1]

    @staticmethod
    def _read_twin(decoder: Decoder, hidden: torch.Tensor, shown: Shown) -> torch.Tensor:
        context, _ = decoder.twin_attention(hidden, *decoder.twin_attention.memory(shown.states), shown.mask)
        return context * shown.keep

    def start_steps(
        self, encoder_outputs: BidirSeq2SeqEncoderOutput, direction: str, need_twin_weights: bool = False
    ) -> DecoderSteps | FastDecoderSteps:
        """What writes about documents a token at a time: `"l2r"`, `"r2l"`, or `"both"` reading each other.

        Those that can tell what twins read of each other take longer.

        Raises:
            ValueError: If the model has no such decoder.
        """
        directions = ("l2r", "r2l") if direction == "both" else (direction,)
        decoders = [self.direction_decoder(name) for name in directions]
        own_types = (Decoder, ModulatedLayerNorm, MultiHeadAttention)
        are_plain = all(is_plain(decoder, *own_types) for decoder in decoders)
        steps = FastDecoderSteps if are_plain and are_enabled() and not need_twin_weights else DecoderSteps
        embed = self._embed_words if self.config.use_copy else self.encoder.embed_tokens
        return steps(decoders, embed, encoder_outputs, self.config.twin_memory)

    def _twin_keep(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[R, 1, 1]`: 0 where a training row loses its twin context, else 1 (twin dropout)."""
        keep = hidden.new_ones(hidden.shape[0], 1, 1)
        return keep.bernoulli_(1 - self.config.twin_dropout) if self.training else keep


class BidirSeq2SeqForConditionalGeneration(BidirSeq2SeqPreTrainedModel, BidirSeq2SeqGenerationMixin, GenerationMixin):
    """The model with its output layer: trains from `labels`, writes with `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}
    # Older checkpoints have not counted.
    _keys_to_ignore_on_load_missing = [r"^prior\.title_counts$"]
    accepts_loss_kwargs = True

    def __init__(self, config: BidirSeq2SeqConfig):
        super().__init__(config)
        self.model = BidirSeq2SeqModel(config)
        self.prior = SourcePrior(config.vocab_size) if config.use_prior else None
        self.copy_attention = None
        if config.use_copy:
            attentions = {direction.name: CopyAttention(config, direction) for direction in self.directions}
            self.copy_attention = nn.ModuleDict(attentions)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.post_init()
        # What the base model does without, as transformers has gathered it, is ours: weights that a config denies, as
        # those of copies where use_copy=False, are to be told of.
        self._keys_to_ignore_on_load_unexpected = set[str]()
        self.init_generation_defaults()

    @classmethod
    def from_pretrained_encoder(
        cls, name_or_path: str | Path, **settings: Any
    ) -> BidirSeq2SeqForConditionalGeneration:
        """A new model whose encoder is one of transformers, with its weights and its tokenizer.

        The encoder reads pieces of its own tokenizer, titles and copies go by ours: see [`encode_sources`]. Both
        encoder and tokenizer are saved with the model.

        Args:
            name_or_path: An encoder (BERT, ModernBERT, XLM-R ...) or an encoder-decoder (T5, BART ...), of which the
                encoder is taken; a folder, or a name on the Hub.
            **settings: Of the config.

        Raises:
            ValueError: If its tokenizer does not tell where in a text its pieces stand.
        """
        source = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        kept = {"encoder_type": "pretrained", "encoder_config": kept_config(source.config)}
        model = cls(cls.config_class(**{**settings, **kept}))
        model.get_encoder().pretrained.model.load_state_dict(encoder_of(source).state_dict())
        model.source_tokenizer = source_tokenizer_of(tokenizer, source.config)
        return model

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer shared by both directions."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output layer."""
        self.lm_head = new_embeddings

    def get_encoder(self, *args: Any, **kwargs: Any) -> Encoder:
        """The encoder."""
        return self.model.encoder

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes embedding, output layer and the prior's tables; new words start with the initial prior."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        size = embeddings.num_embeddings
        if self.prior is not None and self.prior.shift.shape[0] != size:
            fills = {"log_scale": math.log(self.config.prior_initial_scale), "shift": 0, "title_counts": 0}
            for name, initial in fills.items():
                old = getattr(self.prior, name)
                new = old.new_full((size,), initial)
                kept = min(size, old.shape[0])
                new[:kept] = old.detach()[:kept]
                is_weight = isinstance(old, nn.Parameter)
                setattr(self.prior, name, nn.Parameter(new, old.requires_grad) if is_weight else new)
        return embeddings

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """`[B, T]` labels to left-to-right decoder inputs `[B, T]`: the start id, then the labels but the last."""
        return directions_of(self.config, "l2r")[0].decoder_inputs(pack_labels(labels, self.config.bos_token_id))

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        r2l_decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: BidirSeq2SeqEncoderOutput | None = None,
        past_key_values: BidirSeq2SeqCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        decoding_direction: str | None = None,
        use_twin: bool | tuple[torch.LongTensor, torch.LongTensor] | None = None,
        use_cache: bool | None = None,
        extended_input_ids: torch.LongTensor | None = None,
        encoder_input_ids: torch.LongTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_positions: torch.LongTensor | None = None,
        l2r_partner_ids: torch.LongTensor | None = None,
        r2l_partner_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BidirSeq2SeqLMOutput:
        """As [`BidirSeq2SeqModel.forward`], which also takes `kwargs`, and further:

        Args:
            labels: `[B, T]` target ids ending in the end id, -100 where there is none. The right-to-left targets
                are made from them; logits come out with each row's targets pushed to the left. Of a model that
                copies they may hold ids of `extended_input_ids`. Without labels or decoder inputs the source itself
                is read, as by BART.
            decoding_direction: `"l2r"` or `"r2l"`: which decoder runs alone. Default, or `"both"`: with labels all
                that the model has.
            encoder_input_ids, encoder_attention_mask, encoder_positions: `[B, P]`, `[B, P]` and `[B, S]`, for a
                pretrained encoder, see [`Encoder.forward`].
            l2r_partner_ids, r2l_partner_ids: `[B, P]` and `[B, Q]`, what an earlier model wrote of each document
                from either side, as `labels`; a row without any has no partner. Read in training where
                `twin_partner="written"`, and of no meaning elsewhere.
            **kwargs: Also what [`loss_and_logits`] knows, such as `skip_logits`.

        Raises:
            ValueError: On contradictory or missing inputs, and on labels outside the vocabulary (checked on CPU).
        """
        before = (l2r_partner_ids, r2l_partner_ids)
        encoder_outputs = self.model.encode(
            input_ids,
            attention_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds=inputs_embeds,
            extended_input_ids=extended_input_ids,
            encoder_input_ids=encoder_input_ids,
            encoder_attention_mask=encoder_attention_mask,
            encoder_positions=encoder_positions,
            **kwargs,
        )
        directions, targets = directions_of(self.config, decoding_direction), list[torch.LongTensor]()
        if labels is None and decoding_direction is r2l_decoder_input_ids is None:
            self._refuse_lost_labels(decoder_input_ids is not None or decoder_inputs_embeds is not None, **kwargs)
        if labels is not None:
            labels, use_cache = pack_labels(labels, self.config.bos_token_id), False
            self._check_labels(labels, encoder_outputs)
            targets = [direction.targets(labels) for direction in directions]
            first, *r2l = (direction.decoder_inputs(target) for direction, target in zip(directions, targets))
            r2l_decoder_input_ids = r2l[0] if r2l else None
            if directions[0].name == "r2l" or (decoder_input_ids is decoder_inputs_embeds is None):
                decoder_input_ids, decoder_inputs_embeds = first, None
        elif use_cache is None:
            use_cache = self.config.use_cache and not self.training and r2l_decoder_input_ids is None
        if decoder_input_ids is decoder_inputs_embeds is None and input_ids is not None:
            decoder_input_ids = directions[0].decoder_inputs(input_ids)

        outputs = self.model(
            decoder_input_ids=decoder_input_ids,
            r2l_decoder_input_ids=r2l_decoder_input_ids,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            decoder_inputs_embeds=decoder_inputs_embeds,
            decoding_direction=decoding_direction,
            use_twin=self._partners(encoder_outputs, targets, before) if use_twin is None else use_twin,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        cache = outputs.get(CACHE_NAME)
        words = self.words(encoder_outputs, cache)
        written = [self._written(outputs, directions[0], decoder_input_ids, cache)]
        if outputs.r2l_last_hidden_state is not None:
            written.append(Written(outputs.r2l_last_hidden_state, "r2l", r2l_decoder_input_ids))
        loss, logits = self.loss_and_logits(words, written, targets, **kwargs)
        return BidirSeq2SeqLMOutput(
            loss=loss,
            logits=logits[0] if logits else None,
            r2l_logits=logits[1] if len(logits) > 1 else None,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            **{CACHE_NAME: cache},
        )

    def loss_and_logits(
        self,
        words: Words,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        objective: Callable[..., torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """The loss, if there are targets, and the logits of each direction, if they are needed.

        Args:
            words: Of the documents.
            written: By each direction.
            targets: Of each direction, `[R, T]`; none without labels.
            num_items_in_batch: Number of target tokens that the loss is averaged over; default: those in `labels`.
            skip_logits: Whether to return no logits beside the loss, which is much faster and smaller: see
                `projected_cross_entropy`. Default: in training with `labels`.
            objective: Makes the loss, of which there are no logits: called with the four arguments above. Default: the
                cross-entropy.
            **kwargs: Ignored.
        """
        if not targets:
            return None, [words.logits(own) for own in written]
        if objective is not None:
            return objective(words, written, targets, num_items_in_batch), []
        if self.training if skip_logits is None else skip_logits:
            return words.loss(written, targets, num_items_in_batch, self._smoothing), []
        logits, loss = words.logits_and_loss(written, targets, num_items_in_batch, self._smoothing)
        return loss, logits

    def _partners(
        self,
        encoder_outputs: BidirSeq2SeqEncoderOutput,
        targets: Sequence[torch.LongTensor],
        before: tuple[torch.LongTensor | None, torch.LongTensor | None],
    ) -> tuple[torch.LongTensor, torch.LongTensor] | None:
        """What each decoder is said to have written of targets `[R, T]`, if not the true words; see `twin_partner`.

        `before` is what an earlier model has written.
        """
        if len(targets) < 2 or not self.training or self.config.twin_partner not in ("own", "written"):
            return None
        rows, length = targets[0].shape
        keeps = torch.rand(rows, device=targets[0].device) >= self.config.twin_dropout
        if self.config.twin_partner == "written":
            return self._written_before(before, keeps, encoder_outputs)
        left, right = (targets[0].new_full((rows, length), self.config.pad_token_id) for _ in range(2))
        chosen = keeps.nonzero().squeeze(1)
        if len(chosen):
            documents = chosen // (rows // len(encoder_outputs.last_hidden_state))
            left[chosen], right[chosen] = self.write_alone(encoder_outputs.select(documents), length)
        return left, right

    def _written_before(
        self,
        before: tuple[torch.LongTensor | None, torch.LongTensor | None],
        keeps: torch.Tensor,
        encoder_outputs: BidirSeq2SeqEncoderOutput,
    ) -> tuple[torch.LongTensor, torch.LongTensor]:
        """What an earlier model has written, `[B, P]` of each direction, for the rows `keeps` `[R]`."""
        shown, documents = [], len(encoder_outputs.last_hidden_state)
        for direction, labels in zip(self.directions, before):
            name = f"{direction.name}_partner_ids"
            if labels is None:
                raise ValueError(
                    f"twin_partner='written' without {name}: give what an earlier model wrote of these documents "
                    "(`bidir-seq2seq partners` writes it), or set config.twin_partner to 'own'"
                )
            if len(labels) != documents:
                raise ValueError(f"{name} has {len(labels)} rows for {documents} documents: give one row a document")
            self._check_labels(labels, encoder_outputs, name)
            shown.append(as_written(labels.repeat_interleave(len(keeps) // documents, dim=0), direction, keeps))
        return shown[0], shown[1]

    @torch.no_grad()
    def write_alone(self, encoder_outputs: BidirSeq2SeqEncoderOutput, num_steps: int) -> list[torch.LongTensor]:
        """What each direction writes by itself, greedily, of B documents: `[B, num_steps]` for each, in its own order
        with its start first, padded after its end; its decoder without dropout, in training too."""
        words = self.words(encoder_outputs)
        written = []
        for direction in self.directions:
            next_tokens = words.next_tokens(None, [direction.name])
            never = [direction.pad_id, self.config.unk_token_id, direction.start_id]
            never = torch.tensor(never, device=encoder_outputs.last_hidden_state.device)
            batch_size = len(encoder_outputs.last_hidden_state)
            with without_dropout(self.model.direction_decoder(direction.name)):
                steps = self.model.start_steps(encoder_outputs, direction.name)
                written.append(write_alone(steps, next_tokens, direction, batch_size, num_steps, never))
        return written

    @property
    def _smoothing(self) -> float:
        # Smoothed targets are for learning; measured outside training, the loss stays the plain cross-entropy.
        return self.config.label_smoothing if self.training else 0.0

    def _refuse_lost_labels(
        self, has_inputs: bool, num_items_in_batch: torch.Tensor | int | None = None, **kwargs: Any
    ) -> None:
        if num_items_in_batch is None:
            return
        if self.config.decoder_directions == "l2r" and not has_inputs:
            raise ValueError(
                "there is a number of labels (num_items_in_batch) but no labels, nor decoder_input_ids: give the "
                "collator the model, DataCollatorForSeq2Seq(tokenizer, model=model), which makes them, or set "
                "config.label_smoothing in place of label_smoothing_factor"
            )
        if self.config.decoder_directions != "l2r":
            raise ValueError(
                "there is a number of labels (num_items_in_batch) but no labels: a Trainer takes them away for "
                "label_smoothing_factor or compute_loss_func, and right-to-left targets are made from them. Set "
                "config.label_smoothing instead, which smooths every direction; for a loss of your own, also give "
                "r2l_decoder_input_ids, and logits and r2l_logits come back, or decoding_direction for one direction"
            )

    def _written(
        self,
        outputs: BidirSeq2SeqModelOutput,
        direction: Direction,
        inputs: torch.LongTensor | None,
        cache: BidirSeq2SeqCache | None,
    ) -> Written:
        """What the only or left-to-right direction makes words of."""
        if self.copy_attention is not None:
            if inputs is None:
                raise ValueError(
                    "decoder_inputs_embeds do not say which words were written, and a model with use_copy=True looks "
                    "for them in the source: give decoder_input_ids"
                )
            inputs = inputs if cache is None else cache.read(inputs)
        return Written(outputs.last_hidden_state, direction.name, inputs)

    def _check_labels(
        self, labels: torch.LongTensor, encoder_outputs: BidirSeq2SeqEncoderOutput, name: str = "labels"
    ) -> None:
        num_words = self.config.vocab_size
        if encoder_outputs.source_ids is not None and is_read_at_once(labels) and labels.numel():
            num_words = max(num_words, int(encoder_outputs.source_ids.max()) + 1)
        check_ids(name, labels.masked_fill(labels == IGNORE_INDEX, 0), num_words)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those that the model has, left-to-right first."""
        return directions_of(self.config)

    @property
    def may_be_taken_apart(self) -> bool:
        """Whether its parts, called one by one, make the words that `forward` makes: not where somebody has hooked the
        whole, or has derived a class with a `forward` of its own."""
        is_own = type(self).forward is BidirSeq2SeqForConditionalGeneration.forward
        return is_own and not any(model._forward_hooks or model._forward_pre_hooks for model in (self, self.model))

    def words(
        self, encoder_outputs: BidirSeq2SeqEncoderOutput | None, cache: BidirSeq2SeqCache | None = None
    ) -> Words:
        """What makes words of features about B documents, taken from or left in the cache."""
        if cache is not None and cache.words is not None:
            return cache.words
        prior = copies = None
        if self.prior is not None:
            prior = self.prior(encoder_outputs.source_words)
        if self.copy_attention is not None and encoder_outputs.source_ids is not None:
            ids, mask = encoder_outputs.source_ids, encoder_outputs.source_mask
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                mask = mask & (ids != getattr(self.config, name))
            copies = {
                name: Copies(
                    attention, self.model.direction_decoder(name).own(encoder_outputs.last_hidden_state), ids, mask
                )
                for name, attention in self.copy_attention.items()
            }
        words = Words(self.lm_head, prior, copies)
        if cache is not None:
            cache.words = words
        return words

    def count_titles(self, titles: Iterable[Sequence[int]]) -> None:
        """Counts the words of titles that the model learns from, which `vocabulary_shortlist` goes by.

        Args:
            titles: The ids of each, such as a column of labels. Those of an earlier call stay counted.
        """
        titles = iter(titles)
        while self.prior is not None and (some := list(islice(titles, 1000))):
            self.prior.count(torch.tensor(list(chain.from_iterable(some)), dtype=torch.long, device=self.device))

    @torch.no_grad()
    def sequence_log_probs(
        self,
        encoder_outputs: BidirSeq2SeqEncoderOutput,
        labels: torch.LongTensor,
        decoding_direction: str | None = None,
    ) -> dict[str, torch.Tensor]:
        """Log-probability of given titles under each direction alone, the twin off; without gradients.

        Args:
            encoder_outputs: Of B documents.
            labels: `[R, T]` titles, R = B * G, each ending in the end id and padded with -100.
            decoding_direction: Which directions: `"l2r"`, `"r2l"` or `"both"`. Default: the model's.

        Returns:
            For each direction, `[R]` natural log-probabilities of the whole title and its end.
        """
        directions = directions_of(self.config, decoding_direction)
        labels = pack_labels(labels, self.config.bos_token_id)
        documents = len(encoder_outputs.source_mask)
        if documents <= JUDGED_TOGETHER or not is_read_at_once(labels):
            return self._judge(encoder_outputs, labels, directions)
        # With all others one long title would have the whole batch read to its length.
        titles = labels.unflatten(0, (documents, -1))
        lengths, order = (titles != IGNORE_INDEX).sum(2).amax(1).sort()
        judged = [
            self._judge(
                encoder_outputs.select(some), titles[some, :, : max(int(longest[-1]), 1)].flatten(0, 1), directions
            )
            for some, longest in zip(order.split(JUDGED_TOGETHER), lengths.split(JUDGED_TOGETHER))
        ]
        back = order.argsort()
        return {
            name: torch.cat([found[name].unflatten(0, (-1, titles.shape[1])) for found in judged])[back].flatten()
            for name in judged[0]
        }

    def _judge(
        self, encoder_outputs: BidirSeq2SeqEncoderOutput, labels: torch.LongTensor, directions: Sequence[Direction]
    ) -> dict[str, torch.Tensor]:
        """As `sequence_log_probs`, of labels that are packed to the left, all at once."""
        words, log_probs = self.words(encoder_outputs), {}
        for direction in directions:
            targets = direction.targets(labels)
            inputs = direction.decoder_inputs(targets)
            outputs = self.model(
                decoder_input_ids=inputs,
                encoder_outputs=encoder_outputs,
                decoding_direction=direction.name,
                use_cache=False,
                return_dict=True,
            )
            written = Written(outputs.last_hidden_state, direction.name, inputs)
            log_probs[direction.name] = words.log_probs(written, targets).sum(1)
        return log_probs


def _as_mask(attention_mask: torch.Tensor | None, shape: torch.Size) -> torch.BoolTensor | None:
    """True at tokens, for documents of that shape, `[B, S]`."""
    if attention_mask is not None and attention_mask.shape != shape:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} for documents of {tuple(shape)}: it has a number "
            "for each token"
        )
    return None if attention_mask is None else attention_mask.bool()


def _load_source_tokenizer(name_or_path: Any, **kwargs: Any) -> Tokenizer:
    try:
        return Tokenizer.from_file(cached_file(name_or_path, SOURCE_TOKENIZER_NAME, **kwargs))
    except OSError as error:
        raise ValueError(
            f"{name_or_path}: {SOURCE_TOKENIZER_NAME} of its pretrained encoder is missing: copy it beside the "
            "weights, where save_pretrained has written it"
        ) from error


__all__ = [
    "BidirSeq2SeqEncoderOutput",
    "BidirSeq2SeqForConditionalGeneration",
    "BidirSeq2SeqLMOutput",
    "BidirSeq2SeqModel",
    "BidirSeq2SeqModelOutput",
    "BidirSeq2SeqPreTrainedModel",
    "Decoder",
    "Encoder",
    "ModulatedLayerNorm",
    "MultiHeadAttention",
]
