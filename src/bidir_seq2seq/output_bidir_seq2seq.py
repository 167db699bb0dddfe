"""From features to words: output layer, prior, copies of the source, the loss, and scores of next tokens.

One formula, whoever asks. With the prior of the source's words, logits are

    z = (W x + b + prior) / 2

and words are written with probability `softmax(z)`. A model that copies (See, Liu and Manning 2017,
https://arxiv.org/abs/1704.04368) looks for the next word in the source as well: with the share g of copies and the
attention a over its tokens, both made of the same features,

    p(w) = (1 - g) softmax(z)_w + g sum of a_s over the places s of w in the source.

A word of the source that the vocabulary does not have can be written by its place alone: it has an id of its own from
V on, which counts within its document only (`extended_input_ids`).

Letters: B documents, R = B * G rows, V vocabulary, X words of a document outside it, E embedding size, S source
length, T target length, Q hypotheses of a document that want a next token, K beams, D directions, P partners of a
hypothesis, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from .directions_bidir_seq2seq import IGNORE_INDEX, Direction
from .kernels_bidir_seq2seq import (
    FixedLinear,
    MatmulLinear,
    are_enabled,
    block_size,
    column_multiple,
    is_plain,
    is_read_at_once,
    keep,
    largest_sums,
)
from .loss_bidir_seq2seq import projected_cross_entropy, projected_log_probs

if TYPE_CHECKING:
    from .configuration_bidir_seq2seq import BidirSeq2SeqConfig

IMPOSSIBLE = float("-inf")


class SourcePrior(nn.Module):
    """The learned prior over source words: exp(log_scale) * chi + shift, chi marking the words that occur.

    It also keeps how often each word stands in the titles that the model learns from, which is what a vocabulary
    shortlist is made of. Weights tell that badly: features are far from zero on average, so the largest biases are not
    the likeliest words.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(vocab_size))
        self.shift = nn.Parameter(torch.zeros(vocab_size))
        self.register_buffer("title_counts", torch.zeros(vocab_size, dtype=torch.long))

    def count(self, labels: torch.LongTensor) -> None:
        """Counts the words of titles `[...]`, those outside the vocabulary left out."""
        is_word = (labels >= 0) & (labels < len(self.title_counts))
        self.title_counts += labels[is_word].bincount(minlength=len(self.title_counts))

    def forward(self, source_words: torch.Tensor) -> torch.Tensor:
        """`[B, V]` bool to `[B, V]`."""
        return torch.addcmul(self.shift, source_words.to(self.shift.dtype), self.log_scale.exp())


class CopyAttention(nn.Module):
    """Where in the source a direction finds its next word, and whether to take it from there.

    Most of what is copied goes on where the last words came from. So a place gets a bonus where the words before it
    (in the order of writing) are the last ones that were written: one number for each word more that agrees, made of
    the features. Attention alone takes long to learn as much.

    Args:
        config: The model's.
        direction: Whose it is.
    """

    def __init__(self, config: BidirSeq2SeqConfig, direction: Direction):
        super().__init__()
        self.direction, self.context = direction, config.copy_context
        self.query = MatmulLinear(config.embedding_size, config.hidden_size, bias=False)
        self.key = MatmulLinear(config.hidden_size, config.hidden_size, bias=False)
        self.share = nn.Linear(config.embedding_size, 1)
        self.follow = nn.Linear(config.embedding_size, config.copy_context)

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, agrees: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Looks for the next words.

        Args:
            x: Features `[B, Q * P, E]`.
            keys: `[B, S, H]`, of the encoder's states, scaled.
            mask: `[B, 1, S]`, 0 where there is a word to copy, and as little as can be elsewhere.
            agrees: For each number of words `[B, Q, S]`, 1 where so many of the last ones stand before a place.

        Returns:
            The attention `[B, Q * P, S]` and the logit of the share of copies `[B, Q * P, 1]`, float32.
        """
        scores = torch.baddbmm(mask.to(keys.dtype), self.query(x), keys.mT).float()
        bonus = self.follow(x).float()
        by_hypothesis = scores.view(len(x), agrees[0].shape[1], -1, scores.shape[-1])
        for number, agreed in enumerate(agrees):
            strength = bonus[..., number].view(*by_hypothesis.shape[:3], 1)
            by_hypothesis = torch.addcmul(by_hypothesis, strength, agreed[:, :, None])
        # A document without words has nothing to copy; its attention is defined all the same.
        share = self.share(x).float() + mask.amax(-1, keepdim=True)
        return by_hypothesis.view_as(scores).softmax(-1), share


class Copies:
    """A copy attention and the documents that it reads.

    Args:
        attention: The module.
        states: `[B, S, H]`, the encoder's.
        ids: `[B, S]`, of the source's tokens; V and above for words outside the vocabulary.
        mask: `[B, S]`, true where there is a word to copy.
    """

    def __init__(self, attention: CopyAttention, states: torch.Tensor, ids: torch.LongTensor, mask: torch.BoolTensor):
        self.attention, self.ids = attention, ids
        keys = attention.key(states)
        self.keys = keys * keys.shape[-1] ** -0.5
        # Not minus infinity: where there is nothing to copy softmax must be defined, in float16 as well.
        self.mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -3e4)[:, None]
        self.before = list(self._neighbours(mask))

    def _neighbours(self, mask: torch.BoolTensor) -> Iterator[torch.LongTensor]:
        """`[B, S]`, the word before each place, and then the one before that, in the order of writing; -2 for none."""
        direction = self.attention.direction
        number = mask.flip(1).cumsum(1).flip(1) if direction.is_reversed else mask.cumsum(1)
        is_first = mask & (number == 1)
        before = self.ids.masked_fill(~mask, -2)
        for distance in range(1, self.attention.context + 1):
            cut, padding = (before[:, 1:], (0, 1)) if direction.is_reversed else (before[:, :-1], (1, 0))
            before = F.pad(cut, padding, value=-2)
            if distance == 1:
                # What starts a title stands before the first word, for titles that begin as their documents do.
                before = before.masked_fill(is_first, direction.start_id)
            yield before

    def __call__(self, x: torch.Tensor, written: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The probabilities of copying each word of the source, and of copying none; together 1.

        Args:
            x: Features `[B, Q * P, E]`, P for each hypothesis.
            written: `[B, Q, context]`, the last words of each hypothesis, the last one at the end; -1 for none.

        Returns:
            `[B, Q * P, S]` and `[B, Q * P, 1]`.
        """
        same = (before[:, None] == written[..., -distance, None] for distance, before in enumerate(self.before, 1))
        agrees = [agreed.float() for agreed in accumulate(same, torch.logical_and)]
        attention, share = self.attention(x, self.keys, self.mask, agrees)
        return attention * share.sigmoid(), (-share).sigmoid()

    def of_targets(
        self, features: torch.Tensor, inputs: torch.LongTensor, targets: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of features `[R, T, E]` and the decoder's inputs `[R, T]` the probability that each target `[R, T]` is
        copied, and that none is, `[R, T]`."""
        num_documents = len(self.keys)
        written = last_words(inputs, self.attention.context).reshape(num_documents, -1, self.attention.context)
        copied, generated = self(features.reshape(num_documents, -1, features.shape[-1]), written)
        is_target = self.ids[:, None] == targets.reshape(num_documents, -1, 1)
        return (copied * is_target).sum(-1).view(targets.shape), generated.view(targets.shape)

    def repeat(self, times: int) -> None:
        """Each document so many times, one after another."""
        if times > 1:
            parts = (self.keys, self.ids, self.mask, *self.before)
            self.keys, self.ids, self.mask, *self.before = (x.repeat_interleave(times, dim=0) for x in parts)


def last_words(written: torch.LongTensor, number: int) -> torch.LongTensor:
    """Of sequences `[R, T]` at each place the last words up to it, `[R, T, number]`, the last one at the end; -1 where
    there are not so many."""
    return F.pad(written, (number - 1, 0), value=-1).unfold(1, number, 1)


@dataclass
class Written:
    """What a decoder makes words of, at T places of R rows.

    Attributes:
        features: `[R, T, E]`.
        direction: The decoder's, by name.
        inputs: `[R, t]`, what it has read, up to and with the last place, from the start or not; needed for copies
            alone.
    """

    features: torch.Tensor
    direction: str = "l2r"
    inputs: torch.LongTensor | None = None


class Words:
    """All that makes words of features about B documents; what does not change between features is made once.

    Args:
        output_layer: A linear layer to V words. Only where it is exactly that its weight is read past it.
        prior: Of the documents, `[B, V]`; `None` for a model without.
        copies: Of the documents, for each direction; `None` for a model without.

    Attributes:
        num_words: V + X.
        is_read: Whether the layer's weight may be read past it.
    """

    def __init__(
        self, output_layer: nn.Module, prior: torch.Tensor | None = None, copies: dict[str, Copies] | None = None
    ):
        self.layer, self.copies = output_layer, copies
        self._prior = prior
        self.is_read = isinstance(output_layer, nn.Linear) and is_plain(output_layer)
        # Halving the features and joining bias and prior leaves one pass over V logits instead of three.
        self.scale = 1.0 if prior is None else 0.5

    @cached_property
    def vocab_size(self) -> int:
        """V."""
        return self.base.shape[1]

    @cached_property
    def num_words(self) -> int:
        """V + X."""
        ids = None if self.copies is None else next(iter(self.copies.values())).ids
        return self.vocab_size if ids is None or ids.numel() == 0 else max(self.vocab_size, int(ids.max()) + 1)

    @cached_property
    def base(self) -> torch.Tensor:
        """What is added to scaled products: bias and prior, `[B, V]`, or `[1, V]` for all documents alike."""
        if not self.is_read:
            # The layer adds its bias itself.
            return self._prior / 2 if self._prior is not None else self._zeros()
        bias = self.layer.bias if self.layer.bias is not None else self._zeros()[0]
        return bias[None] if self._prior is None else (self._prior + bias) / 2

    def _zeros(self) -> torch.Tensor:
        like = next(self.layer.parameters(), torch.empty(0))
        return like.new_zeros(1, self.layer.out_features)

    def logits(self, written: Written) -> torch.Tensor:
        """Of R rows and T places logits `[R, T, V]`; of a model that copies log-probabilities, `[R, T, V + X]`."""
        return self._mix(written, self._vocabulary_logits(written.features))

    def logits_and_loss(
        self,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The [`logits`] of each direction, and by means of them the [`loss`] of its targets `[R, T]`."""
        logits = [self._vocabulary_logits(own.features) for own in written]
        total = sum(self._cross_entropy(*direction, smoothing).sum() for direction in zip(written, logits, targets))
        return [self._mix(*direction) for direction in zip(written, logits)], total / _number(targets, num_items)

    def loss(
        self,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
        smoothing: float = 0.0,
    ) -> torch.Tensor:
        """The cross-entropy per target, averaged over the directions; without logits at padding, nor all at once.

        Args:
            written: By each direction.
            targets: Of each direction, `[R, T]`, -100 where there is none; a scalar of mean nats comes of them.
            num_items: Targets of one direction to average over. Default: those that are there.
            smoothing: Share of the targets that is spread evenly over the vocabulary, as far as they are not copied.
        """
        return self.weighed_sum(written, targets, None, smoothing) / _number(targets, num_items)

    def weighed_sum(
        self,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        weights: Sequence[torch.Tensor] | None,
        smoothing: float = 0.0,
    ) -> torch.Tensor:
        """The sum of the cross-entropies of all targets of all directions.

        Args:
            written, targets, smoothing: As for `loss`.
            weights: Of each direction how much each target counts, `[R, T]`; may be negative. Default: 1.
        """
        if not (self.is_read and are_enabled()):
            logits = [self._vocabulary_logits(own.features) for own in written]
            losses = torch.cat([self._cross_entropy(*own, smoothing) for own in zip(written, logits, targets)])
            return (losses if weights is None else losses * torch.cat(list(weights))).sum()
        flat = torch.cat(list(targets)).flatten()
        rows, length = targets[0].shape
        positions = (flat != IGNORE_INDEX).nonzero().squeeze(1)
        x = torch.cat([own.features for own in written]).flatten(0, 1).index_select(0, positions)
        documents = positions // length % rows // (rows // len(self.base))
        mixture = []
        if self.copies is not None:
            shares = zip(*(self._copies_of(*direction) for direction in zip(written, targets)))
            mixture = [torch.cat(share).flatten().index_select(0, positions) for share in shares]
        of_tokens = None if weights is None else torch.cat(list(weights)).flatten().index_select(0, positions)
        return projected_cross_entropy(
            x * self.scale,
            self.layer.weight,
            self.base,
            documents,
            flat[positions],
            smoothing,
            *mixture,
            weights=of_tokens,
        )

    @torch.no_grad()
    def log_probs(self, written: Written, targets: torch.LongTensor) -> torch.Tensor:
        """The log-probability of each target `[R, T]`, float32, 0 where there is none."""
        is_target = targets != IGNORE_INDEX
        if self.is_read and are_enabled():
            found = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
            documents = torch.arange(len(targets), device=targets.device) // (len(targets) // len(self.base))
            found[is_target] = projected_log_probs(
                written.features[is_target] * self.scale,
                self.layer.weight,
                self.base,
                documents[:, None].expand_as(targets)[is_target],
                targets[is_target].clamp(max=self.vocab_size - 1),
            )
            found.masked_fill_(targets >= self.vocab_size, IMPOSSIBLE)
        else:
            found = self._gather(self._vocabulary_logits(written.features).float().log_softmax(-1), targets)
        if self.copies is not None:
            found = _mixed(found, *self._copies_of(written, targets))
        return found.where(is_target, 0)

    def _copies_of(self, written: Written, targets: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.copies[written.direction].of_targets(written.features, written.inputs, targets)

    def next_tokens(self, shortlist: Shortlist | None = None, directions: Sequence[str] = ("l2r",)) -> NextTokens:
        """Scores of next tokens for a search in some directions, of all words or of those of a shortlist.

        Raises:
            ValueError: On a shortlist beside a layer whose weight cannot be read.
        """
        return NextTokens(self, shortlist, directions)

    def _vocabulary_logits(self, features: torch.Tensor) -> torch.Tensor:
        """`[R, ..., E]` to `[R, ..., V]`, copies apart."""
        if self.is_read and self._prior is not None:
            products = F.linear(features * self.scale, self.layer.weight)
        else:
            products = self.layer(features)
            if self._prior is None:
                return products
            products = products * self.scale
        by_document = products.reshape(len(self.base), -1, products.shape[-1])
        return by_document.add_(self.base.to(products.dtype)[:, None]).view(products.shape)

    def _mix(self, written: Written, logits: torch.Tensor) -> torch.Tensor:
        """The vocabulary's logits `[R, T, V]` to the mixture's `[R, T, V + X]`."""
        if self.copies is None:
            return logits
        copies = self.copies[written.direction]
        last = last_words(written.inputs, copies.attention.context)[:, -logits.shape[1] :]
        # All rows of a document read it together.
        features, last, probs = (
            x.reshape(len(copies.keys), -1, x.shape[-1]) for x in (written.features, last, logits.float().softmax(-1))
        )
        copied, generated = copies(features, last)
        probs = probs * generated
        probs = F.pad(probs, (0, self.num_words - self.vocab_size))
        probs = probs.scatter_add(2, copies.ids[:, None].expand_as(copied), copied)
        log_probs = probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
        return log_probs.view(*logits.shape[:-1], -1)

    def _cross_entropy(
        self, written: Written, logits: torch.Tensor, targets: torch.LongTensor, smoothing: float
    ) -> torch.Tensor:
        """Of each target `[R, T]`, from the vocabulary's logits `[R, T, V]`; 0 where there is none."""
        if self.copies is None:
            losses = F.cross_entropy(
                logits.flatten(0, 1).float(),
                targets.flatten(),
                ignore_index=IGNORE_INDEX,
                reduction="none",
                label_smoothing=smoothing,
            )
            return losses.view(targets.shape)
        log_probs = logits.float().log_softmax(-1)
        known = self._gather(log_probs, targets)
        copied, generated = self._copies_of(written, targets)
        found = _mixed(known, copied, generated)
        # As far as a target is copied, it is not the vocabulary's to be smoothed.
        smoothed = smoothing * (generated.log() + known - found).detach().exp()
        losses = -(1 - smoothed) * found - smoothed * log_probs.mean(-1)
        return losses.where(targets != IGNORE_INDEX, 0)

    def _gather(self, log_probs: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
        """`[R, T, V]` at the targets `[R, T]`; minus infinity for those outside the vocabulary."""
        known = targets.clamp(0, self.vocab_size - 1)
        return log_probs.gather(2, known[..., None]).squeeze(2).masked_fill(targets >= self.vocab_size, IMPOSSIBLE)


def _mixed(log_probs: torch.Tensor, copied: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of words as the vocabulary has them, and the probability of copying each and of no copy."""
    return torch.logaddexp(generated.log() + log_probs, copied.clamp(min=torch.finfo(copied.dtype).tiny).log())


def _number(targets: Sequence[torch.LongTensor], num_items: torch.Tensor | int | None) -> torch.Tensor | int:
    if num_items is None:
        num_items = (targets[0] != IGNORE_INDEX).sum().clamp(min=1)
    return num_items * len(targets)


@dataclass
class Shortlist:
    """The words that titles may use; a search computes no others.

    What the others would add to a softmax is estimated by the rarest words of the list, their stand-ins: as many times
    the stand-ins' probability as they stand more often in titles.

    Attributes:
        shared: `[C]`, ids for all documents, the stand-ins last.
        own: `[B, V]` bool, the words of each document itself, which its titles may use too; they stand for no others.
        num_stand_ins: How many of the shared ones are stand-ins.
        ratio: How many times as often as the stand-ins the words that are not on the list stand in titles.
    """

    shared: torch.LongTensor
    own: torch.BoolTensor
    num_stand_ins: int = 0
    ratio: float = 0.0

    @classmethod
    def of(
        cls,
        config: BidirSeq2SeqConfig,
        source_words: torch.BoolTensor,
        prior: SourcePrior,
        output_layer: nn.Module,
        size: int,
    ) -> Shortlist:
        """A document's own words `[B, V]`, the special ids and the `size` most frequent words of titles."""
        counts = prior.title_counts.double()
        names = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
        special = torch.tensor([getattr(config, name) for name in names], device=counts.device)
        # Equally frequent ones, all of them in a model that has not counted, go by their bias.
        bias = prior.shift if output_layer.bias is None else output_layer.bias + prior.shift
        ranks = counts + bias.sigmoid()
        ranks[special] = IMPOSSIBLE
        listed = ranks.topk(size).indices
        stand_ins = listed[size // 2 :]
        others, known = counts.sum() - counts[special].sum() - counts[listed].sum(), counts[stand_ins].sum()
        return cls(
            shared=torch.cat([special, listed]),
            own=source_words.index_fill(1, special, False),
            num_stand_ins=len(stand_ins),
            ratio=float(others / known) if known > 0 else 0.0,
        )


class Columns:
    """In which columns a search has its scores, and what the output layer multiplies and adds there.

    Words stand in the order of their ids or, with a shortlist, the words that all documents share and then each
    document's own. What fills them up is impossible, which leaves the probabilities of words as they are.

    Args:
        words: Of the documents.
        shortlist: The words that titles may use. Default: all.

    Attributes:
        base: `[B, columns]`, or `[1, columns]`, what is added to the products, without the documents' own words.
        ids: `[B, columns]`, the word of each; V where there is none. `None` if columns are ids.
        own_weight, own_base: `[B, W, E]` and `[B, W]` of the documents' own words.
        stand_ins: Columns of words that stand for others too, `ratio` times.

    Raises:
        ValueError: On a shortlist beside a layer whose weight cannot be read.
    """

    def __init__(self, words: Words, shortlist: Shortlist | None):
        is_read = words.is_read
        if shortlist is not None and not is_read:
            raise ValueError(
                "vocabulary_shortlist computes only some rows of the output layer, and this one "
                f"({_name(words.layer)}) is called as a whole: leave vocabulary_shortlist out, or merge its adapter "
                "and remove its hooks"
            )
        self.vocab_size = words.vocab_size
        self.base = words.base.detach().float()
        self.ids = self.own_weight = self.own_base = None
        self.stand_ins, self.ratio = slice(0), 0.0
        weight = words.layer.weight.detach() if is_read else self.base.T
        if shortlist is not None:
            weight = self._choose(weight, shortlist)
        padding = -len(weight) % column_multiple(weight) if is_read else 0
        if padding:
            self.base = F.pad(self.base, (0, padding), value=IMPOSSIBLE)
            if self.ids is not None:
                self.ids = F.pad(self.ids, (0, padding), value=self.vocab_size)
        if self.own_weight is not None:
            self.ids = torch.cat([self.ids, self._own_ids], dim=1)
        self.has_padding = self.ids is not None or padding > 0

        def lay_out() -> FixedLinear:
            return FixedLinear(F.pad(weight, (0, 0, 0, padding)) if padding else weight)

        if not is_read:
            self.layer = _Called(words.layer, words.scale)
        else:
            self.layer = lay_out() if shortlist is not None else keep(lay_out, words.layer)
        # Rows and columns of some documents' forbidden words.
        self._places: dict[tuple[int, ...], tuple[torch.LongTensor, ...]] = {}
        # Products where they have another dtype than scores: always the same piece of memory.
        self._products: torch.Tensor | None = None

    def _choose(self, weight: torch.Tensor, shortlist: Shortlist) -> torch.Tensor:
        """Leaves the shortlist's words only: their rows of the weight `[V, E]`."""
        shared, own_ids = shortlist.shared, _padded_ids(shortlist.own, padding=self.vocab_size)
        known = own_ids.clamp(max=self.vocab_size - 1)
        own_base = self.base.expand(len(own_ids), -1).gather(1, known).masked_fill(known != own_ids, IMPOSSIBLE)
        owned = shortlist.own[:, shared]
        self.base = self.base[:, shared].masked_fill(owned, IMPOSSIBLE)
        self.ids = shared.expand(len(own_ids), -1).masked_fill(owned, self.vocab_size)
        if shortlist.ratio > 0:
            # In the softmax they stand for others too; their own scores do not.
            self.stand_ins = slice(len(shared) - shortlist.num_stand_ins, len(shared))
            self.ratio = shortlist.ratio
            self.base[:, self.stand_ins] += math.log1p(self.ratio)
        if len(own_ids) > 1:
            self.own_weight, self.own_base = weight[known], own_base
            self._own_ids = own_ids
            return weight[shared]
        # The words of the only document are like the others.
        self.base = torch.cat([self.base, own_base], dim=1)
        self.ids = torch.cat([self.ids, own_ids], dim=1)
        return torch.cat([weight[shared], weight[known[0]]])

    @property
    def number(self) -> int:
        """How many there are."""
        return self.base.shape[1] + (0 if self.own_weight is None else self.own_weight.shape[1])

    def logits(self, x: torch.Tensor, documents: slice) -> torch.Tensor:
        """Scaled features `[n, E]` of some documents to logits `[n, columns]`, float32."""
        base, products = self.base[documents, None], self.layer(x)
        if products.dtype != base.dtype:
            if self._products is None or len(self._products) < len(x):
                self._products = base.new_empty(len(x), base.shape[-1])
            products = self._products[: len(x)].copy_(products)
        logits = products.unflatten(0, (len(base), -1)).add_(base)
        if self.own_weight is not None:
            own = x.unflatten(0, (len(base), -1)) @ self.own_weight[documents].mT
            logits = torch.cat([logits, own + self.own_base[documents, None]], dim=-1)
        return logits.flatten(0, 1)

    def repeat(self, num_documents: int) -> None:
        """Makes room for so many documents, each of them perhaps there several times, one after another."""
        for name in ("base", "ids", "own_weight", "own_base"):
            if (values := getattr(self, name)) is not None and len(values) < num_documents:
                setattr(self, name, values.repeat_interleave(num_documents // len(values), dim=0))

    def words(self, columns: torch.LongTensor) -> torch.LongTensor:
        """The ids of columns `[B, ...]`."""
        ids = columns if self.ids is None else self.ids.gather(1, columns.flatten(1)).view(columns.shape)
        # Where fewer words than asked for are possible, columns without a word may be among the impossible ones.
        return ids.clamp(max=self.vocab_size - 1) if self.has_padding else ids

    def of_words(self, ids: torch.LongTensor) -> torch.LongTensor:
        """The columns of words `[B, N]` that all have one."""
        if self.ids is None:
            return ids
        columns = torch.arange(self.ids.shape[1], device=ids.device).expand_as(self.ids)
        found = ids.new_zeros(len(ids), self.vocab_size + 1).scatter_(1, self.ids, columns)
        return found.gather(1, ids)

    def spread(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[B, Q, columns]` to those of all words, `[B, Q, V]`; impossible where there is no column."""
        if self.ids is None:
            return scores[..., : self.vocab_size]
        everything = scores.new_full((*scores.shape[:2], self.vocab_size + 1), IMPOSSIBLE)
        return everything.scatter_(2, self.ids[:, None].expand_as(scores), scores)[..., : self.vocab_size]

    def forbid(self, scores: torch.Tensor, documents: slice, ids: torch.LongTensor, impossible: float) -> None:
        """Scores `[b, K, columns]` of some documents become `impossible` where a word is one of `ids`, in place."""
        if self.ids is None:
            scores.index_fill_(2, ids, impossible)
        elif not is_read_at_once(scores):
            scores.masked_fill_(torch.isin(self.ids[documents], ids)[:, None], impossible)
        else:
            # The same ids at nearly all steps: where they stand is looked for once.
            key = documents.start, documents.stop, *ids.tolist()
            if key not in self._places:
                self._places[key] = torch.isin(self.ids[documents], ids).nonzero().unbind(1)
            rows, columns = self._places[key]
            scores[rows, :, columns] = impossible


class NextTokens:
    """Probabilities of the next token throughout one search.

    Args:
        words: Of the documents.
        shortlist: The words that titles may use. Default: all.
        directions: The names of those that write.

    Raises:
        ValueError: On a shortlist beside a layer whose weight cannot be read.
    """

    def __init__(self, words: Words, shortlist: Shortlist | None = None, directions: Sequence[str] = ("l2r",)):
        self.scale = words.scale
        self.copies = None if words.copies is None else [copy(words.copies[name]) for name in directions]
        self.columns = Columns(words, shortlist)
        # Words outside the vocabulary have columns of their own after the others.
        self._num_words, self._num_unknown = words.num_words, words.num_words - words.vocab_size
        self._num_unknown += -self._num_unknown % column_multiple(self.columns.base)
        self._copy_columns: torch.LongTensor | None = None
        # Of a step: always the same piece of memory.
        self._probs: torch.Tensor | None = None

    @property
    def reads_written(self) -> bool:
        """Whether the tokens of hypotheses matter beside their features: to copies."""
        return self.copies is not None

    def log_probs(
        self,
        features: torch.Tensor,
        partners: torch.Tensor | None = None,
        written: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """Log-probabilities of all words.

        Args:
            features: `[B, Q, E]`, or `[B, Q, P, E]` of hypotheses beside each of their partners.
            partners: `[B, Q, P]`, for the latter: the weight of each partner in the mean probability.
            written: `[B, Q, t]`, the tokens of each hypothesis, one direction after another; for copies.

        Returns:
            `[B, Q, V + X]`, float32.
        """
        result = torch.cat([scores.clone() for _, scores in self._scores(features, partners, written)])
        if not self._is_log(partners):
            result.clamp_(min=torch.finfo(result.dtype).tiny).log_()
        number = self.columns.number
        spread = self.columns.spread(result[..., :number])
        unknown = result[..., number:][..., : self._num_words - self.columns.vocab_size]
        return spread if self._num_unknown == 0 else torch.cat([spread, unknown], dim=-1)

    def best(
        self,
        features: torch.Tensor,
        scores: torch.Tensor,
        count: int,
        forbidden: Sequence[torch.LongTensor],
        partners: torch.Tensor | None = None,
        written: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
        """The best continuations of each document's hypotheses in each of D directions, by one token.

        Args:
            features, partners, written: As for `log_probs`; Q = D * K, one direction after another.
            scores: `[B, D, K]`, the summed log-probabilities of the hypotheses.
            count: How many, C.
            forbidden: For each direction the ids that may not be written.

        Returns:
            The sums `[B, D, C]`, best first, which hypotheses they continue, and with which ids.
        """
        is_log = self._is_log(partners)
        found = []
        for documents, words in self._scores(features, partners, written):
            words = words.view(-1, *scores.shape[1:], words.shape[-1])
            for direction, ids in zip(words.unbind(1), forbidden):
                self.columns.forbid(direction, documents, ids, IMPOSSIBLE if is_log else 0)
            found.append(largest_sums(words, scores[documents], count, is_log))
        sums, parents, columns = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found))
        if self._num_unknown == 0:
            return sums, parents, self.columns.words(columns)
        beyond = columns - self.columns.number
        known = self.columns.words(columns.clamp(max=self.columns.number - 1))
        unknown = (self.columns.vocab_size + beyond).clamp(max=self._num_words - 1)
        return sums, parents, torch.where(beyond < 0, known, unknown)

    def _is_log(self, partners: torch.Tensor | None) -> bool:
        """Whether `_scores` are log-probabilities: there is no mean nor mixture of them to make."""
        return partners is None and self.copies is None

    def _scores(
        self, features: torch.Tensor, partners: torch.Tensor | None, written: torch.LongTensor | None
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """For some documents at a time their (log-)probabilities `[b, Q, columns]`."""
        num_documents, rows_each = features.shape[0], features[0, ..., 0].numel()
        # Blocks of the same size, as a small one at the end is slow for its size.
        step = math.ceil(num_documents / math.ceil(num_documents * rows_each / block_size(features)))
        if self._probs is None:
            self._prepare(num_documents, step * rows_each)
        copies = None if self.copies is None else self._copies_of(features, partners, written)
        for start in range(0, num_documents, step):
            documents = slice(start, start + step)
            of_documents = features[documents]
            logits = self.columns.logits(of_documents.flatten(0, -2) * self.scale, documents)
            probs = self._probs[: len(logits)]
            if self._is_log(partners):
                scores = torch.log_softmax(logits, -1, out=probs).view(*of_documents.shape[:-1], -1)
                if self.columns.ratio > 0:
                    scores[..., self.columns.stand_ins].sub_(math.log1p(self.columns.ratio))
                yield documents, scores
                continue
            torch.softmax(logits, -1, out=probs)
            probs = probs.view(len(of_documents), -1, probs.shape[-1])
            if partners is not None:
                shape = of_documents.shape[:2]
                weights = partners[documents] if copies is None else partners[documents] * copies[1][documents]
                weights = weights.flatten(0, 1)[:, None]
                probs = torch.bmm(weights, probs.view(*weights.shape[::2], -1)).view(*shape, -1)
            elif copies is not None:
                probs.mul_(copies[1][documents])
            if copies is not None:
                probs = self._add(copies[0][documents], probs, documents)
            if self.columns.ratio > 0:
                # Copies are of the documents' own words, which never are stand-ins.
                probs[..., self.columns.stand_ins].div_(1 + self.columns.ratio)
            yield documents, probs

    def _copies_of(
        self, features: torch.Tensor, partners: torch.Tensor | None, written: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The probabilities of copying each word of the source, `[B, Q, S]`, and of none, `[B, Q, P or 1]`."""
        shares = []
        # Each direction's hypotheses have its own attention.
        for own, copies in zip(features.chunk(len(self.copies), dim=1), self.copies):
            context = copies.attention.context
            last, written = written[:, : own.shape[1], -context:], written[:, own.shape[1] :]
            last = F.pad(last, (context - last.shape[-1], 0), value=-1)
            shares.append(copies(own.flatten(1, -2), last))
        copied, generated = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] for parts in zip(*shares))
        if partners is None:
            return copied, generated
        copied = torch.einsum("bqp,bqps->bqs", partners, copied.unflatten(1, partners.shape[1:]))
        return copied, generated.view(partners.shape)

    def _add(self, copied: torch.Tensor, probs: torch.Tensor, documents: slice) -> torch.Tensor:
        """Copies `[b, Q, S]` of some documents' words to the vocabulary's share `[b, Q, columns]`."""
        if self._num_unknown:
            probs = F.pad(probs, (0, self._num_unknown))
        return probs.scatter_add_(2, self._copy_columns[documents, None].expand_as(copied), copied)

    def _prepare(self, num_documents: int, num_rows: int) -> None:
        """Prepares for `num_rows` rows at a time, of so many documents, each of them perhaps there several times."""
        self.columns.repeat(num_documents)
        for copies in self.copies or ():
            copies.repeat(num_documents // len(copies.keys))
        if self.copies is not None:
            ids, vocab_size = self.copies[0].ids, self.columns.vocab_size
            known = self.columns.of_words(ids.clamp(max=vocab_size - 1))
            self._copy_columns = torch.where(ids < vocab_size, known, ids - vocab_size + self.columns.number)
        self._probs = self.columns.base.new_empty(num_rows, self.columns.number)


class _Called:
    """Stands where a laid-out weight would, for features that have been scaled: calls the layer itself.

    Attributes:
        dtype: None; what comes back is converted if need be.
    """

    def __init__(self, layer: nn.Module, scale: float):
        self.layer, self.scale, self.dtype = layer, scale, None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, E]` to `[n, V]`."""
        return self.layer(x / self.scale) * self.scale


def _name(layer: nn.Module) -> str:
    kind = type(layer)
    return f"{kind.__module__}.{kind.__qualname__}" if kind is not nn.Linear else "an nn.Linear with hooks"


def _padded_ids(words: torch.BoolTensor, padding: int) -> torch.LongTensor:
    """`[B, V]`, true for a document's words, to their ids `[B, most words of a document]`."""
    documents, ids = words.nonzero().unbind(1)
    counts = words.sum(1)
    places = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[documents]
    width = int(counts.max())
    padded = ids.new_full((len(words), width + -width % column_multiple(ids)), padding)
    padded[documents, places] = ids
    return padded


__all__ = [
    "IMPOSSIBLE",
    "Columns",
    "Copies",
    "CopyAttention",
    "NextTokens",
    "Shortlist",
    "SourcePrior",
    "Words",
    "Written",
    "last_words",
]
