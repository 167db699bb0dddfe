"""Writing token by token: one decoder alone, or twins side by side that read each other.

What no step changes is prepared once, and what both directions do is done for both at once, so that a step is few
operations: with few hypotheses, starting operations and reading weights takes longer than computing.

Letters: B documents, K beams, D directions (one, or left-to-right and right-to-left), S source length, E embedding
size, H hidden size, N attention heads of size Z, A = N * Z, t tokens written so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .cache_bidir_seq2seq import BidirSeq2SeqCache
from .kernels_bidir_seq2seq import RecurrentStep, SideBySide, is_read_at_once, keep, matmul

# The twins' memory grows by so many steps at a time.
GROWTH = 16


class Step(NamedTuple):
    """What one step gives.

    Attributes:
        features: `[D, B, K, E]` of one direction; `[D, B, K, K, E]` of two, for each hypothesis beside each of its
            partners, the hypotheses of the other direction.
        weights: Source attention `[D, B * K, N, S]`; `None` if not asked for, or there is none.
        twin_weights: What each hypothesis reads of each partner's tokens, the mean over the heads, `[D, B, K, K, t]`;
            `None` unless asked for, of one direction, and by `FastDecoderSteps`.
    """

    features: torch.Tensor
    weights: torch.Tensor | None
    twin_weights: torch.Tensor | None = None


class DecoderSteps:
    """Decoders that write about B documents, a token at a time, and what they remember.

    Made of the decoders' own methods and modules, so that whatever sits on a module (an adapter, a hook, a quantized
    layer) takes part. [`FastDecoderSteps`] gives the same in less time where nothing does.

    Args:
        decoders: One `Decoder`, or two that read each other, left-to-right first.
        embed_tokens: What turns ids `[...]` into the embeddings `[..., E]` that they share.
        encoder_outputs: Of the documents.
        twin_memory: As in the config: what the second of two decoders reads of the first.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoders: Sequence[nn.Module],
        embed_tokens: Callable[[torch.Tensor], torch.Tensor],
        encoder_outputs: Any,
        twin_memory: str = "hidden",
    ):
        self.decoders, self.embed_tokens = decoders, embed_tokens
        self._shows_features = twin_memory == "features"
        self.caches = [BidirSeq2SeqCache(len(decoder.rnns)) for decoder in decoders]
        for decoder, cache in zip(decoders, self.caches):
            cache.memory = decoder.read_source(encoder_outputs)
        # What each direction has offered its twin, for each pair of hypotheses: [B, K, K, t, size], own ones first.
        self._shown: list[torch.Tensor | None] = [None] * len(decoders)

    def step(self, ids: torch.LongTensor, need_weights: bool = False) -> Step:
        """Reads one token of each hypothesis.

        Args:
            ids: `[D, B, K]`, or as many rows more as each document has of them, one after another.
            need_weights: Whether to return the attention to the source and the twin.
        """
        hidden, contexts, weights = [], [], []
        for decoder, cache, own_ids in zip(self.decoders, self.caches, ids):
            embeds = self.embed_tokens(own_ids.flatten()[:, None])
            hidden.append(decoder.recur(embeds, cache.memory, cache)[-1])
            context, read = decoder.attend_source(hidden[-1], cache.memory, need_weights)
            contexts.append(context)
            weights.append(read)
        weights = None if weights[0] is None else torch.stack(weights).squeeze(3)
        if len(self.decoders) == 1:
            features = self.decoders[0].features(self.decoders[0].concatenate(hidden[0], None, contexts[0]))
            return Step(features.view(*ids.shape, -1), weights)
        # Each hypothesis beside each of its partners: [B, K, K, 1, size].
        shape = (*ids.shape[1:], ids.shape[2])
        hidden, contexts = (
            [None if x is None else x.view(*ids.shape[1:], 1, 1, -1).expand(*shape, 1, -1) for x in of_directions]
            for of_directions in (hidden, contexts)
        )
        features, twin_weights, offer = [], [], hidden[1]
        for index, decoder in enumerate(self.decoders):
            # Offered by the partners, whose own place among the pairs is the first.
            self._show(1 - index, offer)
            memory = decoder.twin_attention.memory(self._shown[1 - index].transpose(1, 2))
            twin, read = decoder.twin_attention(hidden[index], *memory, need_weights=need_weights)
            twin_weights.append(read)
            concatenated = decoder.concatenate(hidden[index], twin, contexts[index])
            features.append(decoder.features(concatenated).squeeze(3))
            offer = concatenated if self._shows_features else hidden[0]
        if not need_weights:
            return Step(torch.stack(features), weights)
        return Step(torch.stack(features), weights, torch.stack(twin_weights).mean(-3).squeeze(-2))

    def reorder(self, parents: torch.LongTensor) -> None:
        """Hypothesis k continues hypothesis `parents[d, b, k]` of its direction and document, `[D, B, K]`."""
        _, num_documents, num_beams = parents.shape
        documents = torch.arange(num_documents, device=parents.device)
        for cache, own in zip(self.caches, parents):
            for layer in cache.layers:
                layer.reorder_cache((own + documents[:, None] * num_beams).flatten())
        if len(parents) == 2:
            self._shown = [
                offered[documents[:, None, None], own[:, :, None], other[:, None, :]]
                for offered, own, other in zip(self._shown, parents, parents.flip(0))
            ]

    def leave_in(self, cache: BidirSeq2SeqCache) -> None:
        """Hands what the only direction remembers to an empty cache, for others to go on from."""
        cache.memory = self.caches[0].memory
        for layer, own in zip(cache.layers, self.caches[0].layers):
            layer.advance(own.state, own.get_seq_length())

    def _show(self, index: int, offer: torch.Tensor) -> None:
        """Direction `index` shows its partners `[B, K, K, 1, size]`, and what it has shown before stays."""
        before = self._shown[index]
        self._shown[index] = offer if before is None else torch.cat([before, offer], dim=3)


class FastDecoderSteps:
    """[`DecoderSteps`] by joined weights, each method for all directions at once.

    It may hold copies of weights, so a change of the decoders needs steps of its own, and it has no gradients.

    Args:
        decoders: One plain `Decoder`, or two that read each other, left-to-right first.
        embed_tokens: What turns ids `[...]` into the embeddings `[..., E]` that they share.
        encoder_outputs: Of the documents.
        twin_memory: As in the config: what the second of two decoders reads of the first.

    Attributes:
        twin_memories: What each direction reads of its twin; the symmetric form fits into one memory for both.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoders: Sequence[nn.Module],
        embed_tokens: Callable[[torch.Tensor], torch.Tensor],
        encoder_outputs: Any,
        twin_memory: str = "hidden",
    ):
        self.embed_tokens = embed_tokens
        self.num_directions = len(decoders)
        self._eps = decoders[0].norms[0].eps
        self._weights = keep(lambda: StepWeights(decoders, twin_memory == "features"), *decoders)
        self._num_heads, self._size = self._weights.num_heads, self._weights.size
        self._memories = [decoder.read_source(encoder_outputs) for decoder in decoders]
        # For each LayerNorm (scale, shift), both `[D * B, 1, size]`.
        self._modulations = [
            tuple(torch.cat(parts) for parts in zip(*of_directions))
            for of_directions in zip(*(memory.modulations for memory in self._memories))
        ]
        self._keys = self._values = self._mask = None
        if self._memories[0].keys is not None:
            # [D * B * N, Z, S] and [D * B * N, S, Z], each in one piece of memory in the order that products read.
            keys, values = (
                torch.cat([getattr(memory, name) for memory in self._memories]) for name in ("keys", "values")
            )
            self._keys, self._values = keys.flatten(0, 1).mT.contiguous(), values.flatten(0, 1)
            self._mask = self._additive_mask(keys)
        # Of each layer, its parts `[D, B * K, H]`.
        self._states: list[tuple[torch.Tensor, ...] | None] = [None] * len(self._weights.layers)
        self._length = 0
        self._first_rows = self._offsets = None
        self.twin_memories = [TwinMemory() for _ in range(2 if self._weights.pair is not None else 1)]

    def step(self, ids: torch.LongTensor, need_weights: bool = False) -> Step:
        """Reads one token of each hypothesis.

        Args:
            ids: `[D, B, K]`, or as many rows more as each document has of them, one after another.
            need_weights: Whether to return the source attention.
        """
        hidden = self.recur(self.embed_tokens(ids).flatten(1, 2))
        source_context, twin_context, weights = self.attend(hidden, ids.shape[2], need_weights)
        self._length += 1
        features = self.features(hidden, source_context, twin_context)
        return Step(features.view(*ids.shape, *[ids.shape[2]] * (self.num_directions - 1), -1), weights)

    def recur(self, x: torch.Tensor) -> torch.Tensor:
        """One token `[D, B * K, E]` through every layer, whose states move on, to the decoders' h `[D, B * K, H]`."""
        for index, (scale, shift) in enumerate(self._modulations):
            # All rows of a document have the same modulation.
            # Not by torch.nn.functional, which asks for the state of cuDNN, each time as long as the norm takes.
            folded = torch.layer_norm(x.reshape(len(scale), -1, x.shape[-1]), x.shape[-1:], eps=self._eps)
            x = torch.addcmul(shift, folded, scale).view(x.shape)
            if index == len(self._weights.layers):
                return x
            self._states[index] = self._weights.layers[index](x, self._states[index])
            x = self._states[index][0]

    def attend(
        self, hidden: torch.Tensor, num_beams: int, need_weights: bool = False
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Reads the source and, of two directions, offers the twins this step and reads them.

        Args:
            hidden: `[D, B * K, H]`.
            num_beams: K.
            need_weights: Whether to return the source attention.

        Returns:
            The source context `[D, B * K, A]`, the twin context of each hypothesis beside each partner
            `[D, B, K, K, A]`, and the weights `[D, B * K, N, S]`; `None` where there is none.
        """
        reads = self._weights.read(hidden)
        source_context = twin_context = weights = None
        if self._keys is not None:
            # All rows of a document read it together.
            queries = reads[..., : self._size].reshape(len(self._keys) // self._num_heads, -1, self._size)
            source_context, weights = self._read_source(queries, need_weights)
            source_context = source_context.view(*hidden.shape[:2], -1)
        if self.num_directions == 2:
            of_twins = reads[..., self._weights.twin_column :].unflatten(1, (-1, num_beams))
            queries, offers = of_twins.split([self._size, 2 * self._size], dim=-1)
            twin_context = self._read_twins(queries, offers, source_context)
        return source_context, twin_context, weights

    def features(
        self, hidden: torch.Tensor, source_context: torch.Tensor | None, twin_context: torch.Tensor | None
    ) -> torch.Tensor:
        """What [`attend`] takes and gives to features: `[D, B * K, E]`, or of pairs `[D, B * K, K, E]`."""
        own = hidden if source_context is None else torch.cat([hidden, source_context], dim=-1)
        features = self._weights.feature(own)
        if twin_context is not None:
            # Of a pair's features only what the twin context adds is the pair's own.
            pairs = self._weights.twin_feature(twin_context.flatten(1, 3))
            features = pairs.unflatten(1, (features.shape[1], -1)).add_(features[:, :, None])
        return F.leaky_relu_(features, 0.2)

    def reorder(self, parents: torch.LongTensor) -> None:
        """Hypothesis k continues hypothesis `parents[d, b, k]` of its direction and document, `[D, B, K]`."""
        num_directions, num_documents, num_beams = parents.shape
        if self._first_rows is None:
            # A document's in its direction, and a direction's in what is kept of both.
            counts = torch.arange(max(num_documents, num_directions), device=parents.device)
            self._first_rows = counts[:num_documents, None] * num_beams
            self._offsets = counts[:num_directions, None] * (num_documents * num_beams)
        rows = (parents + self._first_rows).view(num_directions, -1)
        own_rows = (rows + self._offsets).flatten()
        self._states = [
            tuple(part.flatten(0, 1).index_select(0, own_rows).view(part.shape) for part in state)
            for state in self._states
        ]
        if num_directions == 1:
            return
        if self._weights.pair is None:
            self.twin_memories[0].reorder((rows.flip(0) + self._offsets).flatten())
        else:
            self.twin_memories[0].reorder(rows[1])
            self.twin_memories[1].reorder((rows[0].view(-1, num_beams, 1) * num_beams + parents[1, :, None]).flatten())

    def leave_in(self, cache: BidirSeq2SeqCache) -> None:
        """Hands what the only direction remembers to an empty cache, for others to go on from."""
        cache.memory = self._memories[0]
        for layer, state in zip(cache.layers, self._states):
            layer.advance(state, self._length)

    def _additive_mask(self, keys: torch.Tensor) -> torch.Tensor | None:
        """What is added to scores of keys `[D * B, N, S, Z]`: `[D * B * N, 1, S]`; `None` if there is no padding."""
        mask = torch.cat([memory.mask for memory in self._memories])
        if is_read_at_once(mask) and mask.all():
            return None
        additive = torch.zeros_like(mask, dtype=keys.dtype).masked_fill_(~mask, float("-inf"))
        return additive.expand(-1, keys.shape[1], -1, -1).flatten(0, 1)

    def _read_source(self, queries: torch.Tensor, need_weights: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries `[D * B, Q, A]` to the context `[D * B, Q, A]` and, if needed, its weights `[D, B * Q, N, S]`."""
        # Plain products, as for few queries the fused kernel is slower.
        by_head = self._split(queries).transpose(1, 2)
        flat = by_head.flatten(0, 1)
        scores = matmul(flat, self._keys)
        if self._mask is not None:
            scores += self._mask
        weights = scores.softmax(-1)
        context = matmul(weights, self._values).view(by_head.shape).transpose(1, 2).flatten(2)
        if not need_weights:
            return context, None
        weights = weights.unflatten(0, (-1, self._num_heads)).transpose(1, 2)
        return context, weights.flatten(0, 1).unflatten(0, (self.num_directions, -1))

    def _read_twins(
        self, queries: torch.Tensor, offers: torch.Tensor, source_context: torch.Tensor | None
    ) -> torch.Tensor:
        """Remembers what the twins offer each other in this step, and reads it.

        Args:
            queries: `[D, B, K, A]`.
            offers: `[D, B, K, 2 * A]`, keys and values that the other direction reads.
            source_context: `[D, B * K, A]`.

        Returns:
            The context of each hypothesis beside each partner, `[D, B, K, K, A]`.
        """
        if self._weights.pair is None:
            self.twin_memories[0].append(self._split(offers.flip(0)))
            return self._read_partners(queries, self.twin_memories[0])
        # What left-to-right offers depends on its partner too, so each pair has a memory of its own.
        self.twin_memories[0].append(self._split(offers[1]))
        left = self._read_partners(queries[:1], self.twin_memories[0])
        pairs = left[0] @ self._weights.pair + offers[0][:, :, None]
        if source_context is not None:
            pairs += (source_context[0] @ self._weights.context).view(*offers[0].shape)[:, :, None]
        self.twin_memories[1].append(self._split(pairs))
        # Each query once for each left-to-right hypothesis: [B, K, K, N, Z].
        right = self._split(queries[1])[:, None].expand(*pairs.shape[:2], -1, -1, -1)
        context = self.twin_memories[1].attend(right.reshape(-1, 1, right.shape[-1]))
        return torch.cat([left, context.view(1, *pairs.shape[:3], -1).transpose(2, 3)])

    def _read_partners(self, queries: torch.Tensor, memory: TwinMemory) -> torch.Tensor:
        """All K queries of a document, `[D, B, K, A]`, read each partner's memory: `[D, B, K, K, A]`."""
        num_directions, num_documents, num_beams, _ = queries.shape
        heads = (num_directions * num_documents, num_beams, self._num_heads, num_beams, -1)
        # [D * B, partners, N, K, Z] against as many memories.
        partners = self._split(queries).flatten(0, 1).transpose(1, 2)[:, None].expand(heads)
        context = memory.attend(partners.reshape(-1, num_beams, partners.shape[-1]))
        return context.view(heads).permute(0, 3, 1, 2, 4).reshape(*queries.shape[:3], num_beams, -1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., n * A]` to `[..., n * N, Z]`."""
        return x.unflatten(-1, (-1, self._size // self._num_heads))


class StepWeights:
    """What decoders multiply by in every step about whatever documents.

    The weights of what is multiplied by the same vectors are joined.

    Args:
        decoders: As for [`FastDecoderSteps`].
        shows_features: Whether the second of two reads the first one's features.

    Attributes:
        layers: The recurrent ones.
        num_heads, size: N and A of attention; 0 without any.
        read: h to queries of the source, queries of the twin, and the keys and values that the twin reads.
        twin_column: Where in it the queries of the twin begin.
        feature: h and the source context to features.
        twin_feature: What a pair's twin context adds to them; `None` of one direction.
        pair, context: `[A, 2 * A]`, what a pair's twin context and the source context add to what the pair offers;
            `None` where all partners are offered the same.
    """

    def __init__(self, decoders: Sequence[nn.Module], shows_features: bool):
        self.layers = [RecurrentStep(rnns) for rnns in zip(*(decoder.rnns for decoder in decoders))]
        hidden_size = decoders[0].rnns[0].hidden_size
        attention = decoders[0].source_attention or decoders[0].twin_attention
        self.num_heads = attention.num_heads if attention is not None else 0
        self.size = self.num_heads * attention.head_size if attention is not None else 0
        self.twin_column = self.size if decoders[0].source_attention is not None else 0
        twins = len(decoders) == 2
        self.pair = self.context = None
        read_weights, feature_weights, twin_feature_weights = [], [], []
        for index, decoder in enumerate(decoders):
            parts = [decoder.feature.weight.new_empty(0, hidden_size)]
            if decoder.source_attention is not None:
                # The scale of attention is the queries' already.
                parts.append(decoder.source_attention.query.weight * decoder.source_attention.head_size**-0.5)
            if twins:
                # Each computes the keys and values that its twin reads of it.
                reader = decoders[1 - index].twin_attention
                offer = torch.cat([reader.key.weight, reader.value.weight])
                if index == 0 and shows_features:
                    offer, twin, source = offer.split(decoder.feature_sizes, dim=1)
                    self.pair, self.context = twin.T, source.T
                parts += [decoder.twin_attention.query.weight * reader.head_size**-0.5, offer]
            own, twin, source = decoder.feature.weight.split(decoder.feature_sizes, dim=1)
            read_weights.append(torch.cat(parts))
            feature_weights.append(torch.cat([own, source], dim=1))
            twin_feature_weights.append(twin)
        self.read = SideBySide(read_weights)
        self.feature = SideBySide(feature_weights, [decoder.feature.bias for decoder in decoders])
        self.twin_feature = SideBySide(twin_feature_weights) if twins else None


class TwinMemory:
    """Keys and values that hypotheses, or pairs of them, have shown their twins, laid out as products read them.

    Each lives in two buffers in turn, with room for steps to come: moving a hypothesis copies two pieces of memory.

    Attributes:
        length: Steps so far, t.
    """

    def __init__(self) -> None:
        # [M, N, Z, room] and [M, N, room, Z], and as much again.
        self._keys = self._values = self._other_keys = self._other_values = torch.empty(0)
        self.length = 0

    def append(self, offers: torch.Tensor) -> None:
        """One step of M hypotheses: `[..., 2 * N, Z]`, M in all the leading dimensions, keys before values."""
        keys, values = offers.reshape(-1, 2, offers.shape[-2] // 2, offers.shape[-1]).unbind(1)
        if self.length == 0:
            self._keys = offers.new_zeros(*keys.shape, GROWTH)
            self._values = offers.new_zeros(*values.shape[:2], GROWTH, values.shape[2])
        elif self.length == self._keys.shape[3]:
            self._keys, self._values = F.pad(self._keys, (0, GROWTH)), F.pad(self._values, (0, 0, 0, GROWTH))
        self._keys[..., self.length] = keys
        self._values[:, :, self.length] = values
        self.length += 1

    def attend(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries `[M * N, Q, Z]`, scaled, each read one head of one hypothesis; gives their contexts of that shape.

        Plain products, as for a short memory the fused kernel is slower, and of the whole room, as rows that fill
        vectors are faster than fewer numbers that do not.
        """
        scores = matmul(queries, self._keys.flatten(0, 1))
        scores[..., self.length :] = float("-inf")
        return matmul(scores.softmax(-1), self._values.flatten(0, 1))

    def reorder(self, rows: torch.LongTensor) -> None:
        """Hypothesis m continues hypothesis `rows[m]`, `[M]`."""
        if self._other_keys.shape != self._keys.shape:
            self._other_keys, self._other_values = torch.empty_like(self._keys), torch.empty_like(self._values)
        torch.index_select(self._keys, 0, rows, out=self._other_keys)
        torch.index_select(self._values, 0, rows, out=self._other_values)
        self._keys, self._other_keys = self._other_keys, self._keys
        self._values, self._other_values = self._other_values, self._values


__all__ = ["DecoderSteps", "FastDecoderSteps", "Step", "StepWeights", "TwinMemory"]
