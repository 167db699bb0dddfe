"""The parts of a beam search: scores of next tokens, hypotheses of one direction, and what is kept of each step.

Letters: B documents, K beams, Q hypotheses that want a next token, P partners of each, V vocabulary, E embedding
size, L length of a sequence with its start id, N attention heads, S source length, C candidates of a hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from .kernels_bidir_seq2seq import NUM_SHARES, FixedLinear, is_plain, keep, largest_sums, product_dtype

IMPOSSIBLE = float("-inf")
# On a CPU so many rows of logits are worked on at a time: few enough to stay in its cache.
BLOCK_ROWS = 256


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


class NextTokens:
    """Probabilities of the next token throughout one search: what no step changes is prepared once.

    Scores stand in columns: words in the order of their ids or, with a shortlist, the words that all documents share
    and then each document's own; what fills them up at the end is impossible.

    Args:
        output_layer: A linear layer, of which only the weight `[V, E]` is used; what is not exactly that is called.
        base: `[B, V]`, or `[1, V]` for all documents alike: what is added to the products, bias and prior.
        scale: What features are multiplied by.
        shortlist: The words that titles may use. Default: all.

    Raises:
        ValueError: On a shortlist beside a layer whose weight cannot be read.
    """

    def __init__(self, output_layer: nn.Module, base: torch.Tensor, scale: float, shortlist: Shortlist | None = None):
        is_weight_read = is_plain(output_layer)
        if shortlist is not None and not is_weight_read:
            raise ValueError(
                "vocabulary_shortlist computes only some rows of the output layer, and this one "
                f"({_name(output_layer)}) is called as a whole: leave vocabulary_shortlist out, or merge its adapter "
                "and remove its hooks"
            )
        base = base.float()
        self.vocab_size, self.scale = base.shape[1], scale
        weight = output_layer.weight.detach() if is_weight_read else base.T
        # [B, columns], the id of each; V where there is none.
        self._ids: torch.LongTensor | None = None
        # Rows and columns of some documents' forbidden words.
        self._places: dict[tuple[int, ...], tuple[torch.LongTensor, ...]] = {}
        self._own_weight = self._own_base = None
        self._stand_ins, self._ratio = slice(0), 0.0
        if shortlist is not None:
            ids, own_ids = shortlist.shared, _padded_ids(shortlist.own, padding=self.vocab_size)
            known = own_ids.clamp(max=self.vocab_size - 1)
            own_base = base.expand(len(own_ids), -1).gather(1, known).masked_fill(known != own_ids, IMPOSSIBLE)
            owned = shortlist.own[:, ids]
            own_weight, weight, base = weight[known], weight[ids], base[:, ids].masked_fill(owned, IMPOSSIBLE)
            ids = ids.expand(len(own_ids), -1).masked_fill(owned, self.vocab_size)
            if shortlist.ratio > 0:
                # In the softmax they stand for others too; `_scores` takes that back from their own scores.
                self._stand_ins = slice(len(weight) - shortlist.num_stand_ins, len(weight))
                self._ratio = shortlist.ratio
                base[:, self._stand_ins] += math.log1p(self._ratio)
            if len(own_ids) == 1:
                # The words of the only document are like the others.
                weight, base = torch.cat([weight, own_weight[0]]), torch.cat([base, own_base], dim=1)
                ids, own_ids = torch.cat([ids, own_ids], dim=1), own_ids[:, :0]
            else:
                self._own_weight, self._own_base = own_weight.to(product_dtype(weight)), own_base
        # What fills columns up is impossible, which leaves the probabilities of words as they are.
        padding = -len(weight) % NUM_SHARES if weight.device.type == "cpu" and is_weight_read else 0
        if padding:
            base = F.pad(base, (0, padding), value=IMPOSSIBLE)
        if shortlist is not None:
            self._ids = torch.cat([F.pad(ids, (0, padding), value=self.vocab_size), own_ids], dim=1)
        self._has_padding = self._ids is not None or padding > 0
        self._base = base

        def lay_out() -> FixedLinear:
            return FixedLinear(F.pad(weight, (0, 0, 0, padding)) if padding else weight)

        if not is_weight_read:
            self._output = _Called(output_layer, scale)
        else:
            self._output = lay_out() if shortlist is not None else keep(lay_out, output_layer)
        # Of a step, and its products where they have another dtype: always the same pieces of memory.
        self._probs = self._products = None

    def log_probs(self, features: torch.Tensor, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of all words.

        Args:
            features: `[B, Q, E]`, or `[B, Q, P, E]` of hypotheses beside each of their partners.
            partners: `[B, Q, P]`, for the latter: the weight of each partner in the mean probability.

        Returns:
            `[B, Q, V]`, float32.
        """
        result = torch.cat([scores.clone() for _, scores in self._scores(features, partners)])
        if partners is not None:
            result.clamp_(min=torch.finfo(result.dtype).tiny).log_()
        if self._ids is not None:
            everything = result.new_full((*result.shape[:2], self.vocab_size + 1), IMPOSSIBLE)
            result = everything.scatter_(2, self._ids[:, None].expand_as(result), result)
        return result[..., : self.vocab_size]

    def best(
        self,
        features: torch.Tensor,
        scores: torch.Tensor,
        count: int,
        forbidden: Sequence[torch.LongTensor],
        partners: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
        """The best continuations of each document's hypotheses in each of D directions, by one token.

        Args:
            features, partners: As for `log_probs`; Q = D * K, one direction after another.
            scores: `[B, D, K]`, the summed log-probabilities of the hypotheses.
            count: How many, C.
            forbidden: For each direction the ids that may not be written.

        Returns:
            The sums `[B, D, C]`, best first, which hypotheses they continue, and with which ids.
        """
        impossible = IMPOSSIBLE if partners is None else 0
        found = []
        for documents, words in self._scores(features, partners):
            words = words.view(-1, *scores.shape[1:], words.shape[-1])
            for direction, ids in zip(words.unbind(1), forbidden):
                self._forbid(direction, documents, ids, impossible)
            found.append(largest_sums(words, scores[documents], count, is_log=partners is None))
        sums, parents, ids = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found))
        if self._ids is not None:
            ids = self._ids.gather(1, ids.flatten(1)).view(ids.shape)
        if self._has_padding:
            # Where fewer words than asked for are possible, columns without a word may be among the impossible ones.
            ids = ids.clamp(max=self.vocab_size - 1)
        return sums, parents, ids

    def _forbid(self, words: torch.Tensor, documents: slice, ids: torch.LongTensor, impossible: float) -> None:
        """Scores `[b, K, columns]` of some documents become `impossible` where a word is one of `ids`, in place."""
        if self._ids is None:
            words.index_fill_(2, ids, impossible)
        elif words.device.type != "cpu":
            words.masked_fill_(torch.isin(self._ids[documents], ids)[:, None], impossible)
        else:
            # The same ids at nearly all steps: where they stand is looked for once.
            key = documents.start, documents.stop, *ids.tolist()
            if key not in self._places:
                self._places[key] = torch.isin(self._ids[documents], ids).nonzero().unbind(1)
            rows, columns = self._places[key]
            words[rows, :, columns] = impossible

    def _scores(self, features: torch.Tensor, partners: torch.Tensor | None) -> Iterator[tuple[slice, torch.Tensor]]:
        """For some documents at a time their log-probabilities, or mean probabilities, `[b, Q, columns]`."""
        num_documents, rows_each = features.shape[0], features[0, ..., 0].numel()
        # Blocks of the same size, as a small one at the end is slow for its size.
        num_blocks = math.ceil(num_documents * rows_each / BLOCK_ROWS) if features.device.type == "cpu" else 1
        step = math.ceil(num_documents / num_blocks)
        if self._probs is None:
            self._prepare(num_documents, step * rows_each)
        for start in range(0, num_documents, step):
            documents = slice(start, start + step)
            shape = features[documents].shape[:-1]
            logits = self._logits(features[documents].flatten(0, -2) * self.scale, documents)
            probs = self._probs[: len(logits)]
            if partners is None:
                scores = torch.log_softmax(logits, -1, out=probs).view(*shape, -1)
            else:
                torch.softmax(logits, -1, out=probs)
                weights = partners[documents].flatten(0, 1)[:, None]
                scores = torch.bmm(weights, probs.view(*weights.shape[::2], -1)).view(*shape[:2], -1)
            if self._ratio > 0:
                stand_ins = scores[..., self._stand_ins]
                stand_ins.sub_(math.log1p(self._ratio)) if partners is None else stand_ins.div_(1 + self._ratio)
            yield documents, scores

    def _logits(self, x: torch.Tensor, documents: slice) -> torch.Tensor:
        """Rows `[n, E]` of some documents to logits `[n, columns]`, float32."""
        base, products = self._base[documents, None], self._output(x)
        if products.dtype != base.dtype:
            products = self._products[: len(x)].copy_(products)
        logits = products.unflatten(0, (len(base), -1)).add_(base)
        if self._own_weight is not None:
            own = x.to(self._own_weight.dtype).unflatten(0, (len(base), -1)) @ self._own_weight[documents].mT
            logits = torch.cat([logits, own + self._own_base[documents, None]], dim=-1)
        return logits.flatten(0, 1)

    def _prepare(self, num_documents: int, num_rows: int) -> None:
        """Prepares for `num_rows` rows at a time, of so many documents, each of them perhaps there several times."""
        for name in ("_base", "_ids", "_own_weight", "_own_base"):
            if (values := getattr(self, name)) is not None and len(values) < num_documents:
                setattr(self, name, values.repeat_interleave(num_documents // len(values), dim=0))
        num_own = 0 if self._own_weight is None else self._own_weight.shape[1]
        self._probs = self._base.new_empty(num_rows, self._base.shape[1] + num_own)
        if self._output.dtype != self._base.dtype:
            self._products = self._base.new_empty(num_rows, self._base.shape[1])


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
    padded = ids.new_full((len(words), width + -width % NUM_SHARES), padding)
    padded[documents, places] = ids
    return padded


def forbidden_tokens(processors: LogitsProcessorList, length: int) -> torch.LongTensor | None:
    """The ids `[N]` that processors rule out for sequences of `length`, if that is all they do; else `None`."""
    ids = []
    for processor in processors:
        kind = type(processor)
        if kind is SuppressTokensLogitsProcessor:
            ids.append(processor.suppress_tokens)
        elif kind is MinLengthLogitsProcessor:
            ids += [processor.eos_token_id] * (length < processor.min_length)
        elif kind is MinNewTokensLengthLogitsProcessor:
            ids += [processor.eos_token_id] * (length - processor.prompt_length_to_skip < processor.min_new_tokens)
        else:
            return None
    return ids[0] if len(ids) == 1 else torch.cat(ids)


class Beam:
    """Every document's hypotheses in one direction, or in both, with the rules of transformers' own beam search.

    Each direction has a row for each document, all of the first before those of the second: G rows in all. A
    hypothesis that ends leaves the beam for a pool of the K best finished ones. A row is closed when no running
    hypothesis can enter its pool any more; what happens to other rows does not matter to it.

    Args:
        batch_size: Documents, B.
        num_beams: Hypotheses of a row, K.
        start_ids: The first token of each direction.
        stopping_criteria: Of each direction; they say which candidates end, the end id and the maximum length among
            them.
        generation_config: Prepared by `generate`.
        device: Where all of it lives.

    Attributes:
        paths: `[G, K, max_length, 2]` running hypotheses, best first; `length` of each is filled. The first number of
            a step is the token, the second the hypothesis that it continued (-1 before the first step).
        scores: `[G, K]` their summed log-probabilities; minus infinity for one that does not exist.
        finished_paths, finished_scores: The pool, best first; scores are divided by length ** length_penalty.
        open: `[G, 1]` bool.
    """

    def __init__(
        self,
        batch_size: int,
        num_beams: int,
        start_ids: Sequence[int],
        stopping_criteria: Sequence[StoppingCriteriaList],
        generation_config: GenerationConfig,
        device: torch.device,
    ):
        num_rows = len(start_ids) * batch_size
        self.max_length = generation_config.max_length
        self.length_penalty = generation_config.length_penalty
        self.do_sample = generation_config.do_sample
        # One hypothesis that is sampled is ancestral sampling: its first token decides, even when it is the end.
        self.ancestral = self.do_sample and num_beams == 1
        self.early_stopping = self.ancestral or generation_config.early_stopping
        self.stopping_criteria = stopping_criteria
        self.paths = torch.full((num_rows, num_beams, self.max_length, 2), -1, device=device)
        self.paths[..., 0] = generation_config._pad_token_tensor
        starts = torch.tensor(start_ids, device=device).repeat_interleave(batch_size)
        self.paths[:, :, 0, 0] = starts[:, None]
        self.length = 1
        # One hypothesis to start with: K equal ones would propose the same tokens K times.
        self.scores = torch.full((num_rows, num_beams), IMPOSSIBLE, device=device)
        self.scores[:, 0] = 0
        self.finished_paths = self.paths.clone()
        self.finished_scores = torch.full_like(self.scores, IMPOSSIBLE)
        self.open = torch.ones(num_rows, 1, dtype=torch.bool, device=device)
        self._worst = self.finished_scores[:, -1:]
        self._end_ids = self._plain_end_ids(batch_size)
        limits = [x.max_length for criteria in stopping_criteria for x in criteria if type(x) is MaxLengthCriteria]
        self._longest = min(limits, default=self.max_length)

    @property
    def last_ids(self) -> torch.LongTensor:
        """`[G, K]`, the last token of each running hypothesis."""
        return self.paths[:, :, self.length - 1, 0]

    @property
    def running(self) -> torch.LongTensor:
        """`[G, K, length]`, the tokens of the running hypotheses."""
        return self.paths[:, :, : self.length, 0]

    @property
    def alive(self) -> torch.BoolTensor:
        """`[G, K]`, which hypotheses exist."""
        return self.scores > IMPOSSIBLE

    def candidates(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.LongTensor, torch.LongTensor]:
        """The continuations that a step looks at.

        Args:
            log_probs: `[G, K, V]` of the next token.

        Returns:
            Their scores `[G, C]`, best first (or as drawn), which hypotheses they continue, and with which tokens.
        """
        totals = (log_probs + self.scores[:, :, None]).flatten(1)
        # 2K candidates: each hypothesis has one end, so at least K of them do not end.
        count = min(2 * self.scores.shape[1], totals.shape[1])
        if self.do_sample:
            # The largest sums of log-probability and Gumbel noise are a sample without replacement (Kool et al. 2019,
            # https://arxiv.org/abs/1903.06059).
            flat = (totals - torch.empty_like(totals).exponential_().log()).topk(count).indices
            scores = totals.gather(1, flat)
        else:
            scores, flat = totals.topk(count)
        return scores, flat // log_probs.shape[2], flat % log_probs.shape[2]

    def advance(self, scores: torch.Tensor, parents: torch.LongTensor, written: torch.LongTensor) -> torch.LongTensor:
        """Continues hypotheses by one token.

        Args:
            scores: `[G, C]` of the candidates, best first (or, of sampled ones, in the order drawn).
            parents: `[G, C]`, which hypotheses they continue.
            written: `[G, C]`, with which tokens.

        Returns:
            `[G, K]`, which hypothesis each new one continues.
        """
        num_beams = self.scores.shape[1]
        ends = None if self._end_ids is None else self._ends_of_tokens(written)
        if ends is not None and ends.device.type == "cpu" and not (self.do_sample or ends.any()):
            # Nothing ends, as at most steps: the pool stays, and the best candidates, which come first, go on. Other
            # devices would have to be waited for to know it.
            self.scores, parents, written = (x[:, :num_beams] for x in (scores, parents, written))
            self.paths = self._lengthen(parents, written)
            self._close()
            return parents

        paths = self._lengthen(parents, written)
        if ends is None:
            ends = self._ends_of_paths(paths)
        self._keep_finished(paths[:, :num_beams], scores[:, :num_beams], ends[:, :num_beams])

        scores = scores.masked_fill(ends, IMPOSSIBLE)
        if self.ancestral:
            # After an end the second token goes on, for the twin to read.
            order = ends[:, :1].long()
            self.scores = scores.gather(1, order)
        else:
            self.scores, order = scores.topk(num_beams)
        self.paths = select(paths, order)
        self._close()
        return parents.gather(1, order)

    def _plain_end_ids(self, batch_size: int) -> torch.LongTensor | None:
        """Each row's end ids `[G, 1, number]`, or `None` if something else than end ids and lengths ends titles."""
        ids = []
        for criteria in self.stopping_criteria:
            if not {type(criterion) for criterion in criteria} <= {EosTokenCriteria, MaxLengthCriteria}:
                return None
            own = [criterion.eos_token_id for criterion in criteria if type(criterion) is EosTokenCriteria]
            ids.append(torch.cat(own).to(self.paths.device) if own else self.paths.new_empty(0))
        ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
        return ids.repeat_interleave(batch_size, dim=0)[:, None]

    def _ends_of_tokens(self, written: torch.LongTensor) -> torch.BoolTensor:
        """Which hypotheses `[G, C]` end with the tokens `written`, if only end ids and lengths decide."""
        if self.length + 1 >= self._longest:
            return torch.ones_like(written, dtype=torch.bool)
        return (written[..., None] == self._end_ids).any(-1)

    def _ends_of_paths(self, paths: torch.LongTensor) -> torch.BoolTensor:
        """Which hypotheses `[G, C, max_length, 2]` end, whatever decides."""
        shares = paths[:, :, : self.length, 0].chunk(len(self.stopping_criteria))
        ends = [
            criteria(share.flatten(0, 1), None).view(share.shape[:2])
            for criteria, share in zip(self.stopping_criteria, shares)
        ]
        return torch.cat(ends)

    def _lengthen(self, parents: torch.LongTensor, written: torch.LongTensor) -> torch.LongTensor:
        paths = select(self.paths, parents)
        paths[:, :, self.length] = torch.stack([written, parents], dim=-1)
        self.length += 1
        return paths

    def _keep_finished(self, paths: torch.Tensor, scores: torch.Tensor, ends: torch.Tensor):
        normalised = scores / (self.length - 1) ** self.length_penalty
        normalised = normalised.masked_fill(~(ends & self.open), IMPOSSIBLE)
        pool_size = self.scores.shape[1]
        merged = torch.cat([self.finished_scores, normalised], dim=1)
        self.finished_scores, order = merged.topk(pool_size)
        self.finished_paths = select(torch.cat([self.finished_paths, paths], dim=1), order)
        self._worst = self.finished_scores[:, -1:]

    def _close(self):
        if self.length >= self.max_length:
            self.open = torch.zeros_like(self.open)
            return
        length = self.length - 1
        if self.early_stopping == "never" and self.length_penalty > 0:
            length = self.max_length - 1
        self.open = self.open & (self.scores[:, :1] / length**self.length_penalty > self._worst)
        if self.early_stopping is True:
            self.open &= self._worst == IMPOSSIBLE


class StepRecords:
    """What a caller asked to keep of each step of one direction; `None` where nothing was asked for.

    Attributes:
        scores, logits: `[B * K, V]` for each step, after and before processing.
        weights: `[B * K, N, S]` for each step, the source attention.
    """

    def __init__(self, generation_config: GenerationConfig):
        as_dict = generation_config.return_dict_in_generate
        self.scores: list[torch.Tensor] | None = [] if as_dict and generation_config.output_scores else None
        self.logits: list[torch.Tensor] | None = [] if as_dict and generation_config.output_logits else None
        self.weights: list[torch.Tensor] | None = [] if as_dict and generation_config.output_attentions else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.scores is None and self.logits is None and self.weights is None

    def add(self, logits: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None) -> None:
        """One step: `[B * K, V]` twice and, for a model with source attention, `[B * K, N, S]`."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits)
        if self.weights is not None and weights is not None:
            self.weights.append(weights)


def select(x: torch.Tensor, index: torch.LongTensor) -> torch.Tensor:
    """`x` `[B, M, ...]` at the entries `index` `[B, K]` of its second dimension."""
    rows = index + torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


__all__ = [
    "IMPOSSIBLE",
    "Beam",
    "NextTokens",
    "Shortlist",
    "StepRecords",
    "forbidden_tokens",
    "select",
]
