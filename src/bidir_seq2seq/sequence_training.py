"""Training by whole titles as the model writes them, the last stage of one that writes already.

* `"risk"`: what a model writes is scored, and the better of it becomes likelier. Minimum risk training (Shen et al.
  2016, https://arxiv.org/abs/1512.02433), with the model's own n-best as candidates and the cross-entropy of the true
  title beside the risk (Edunov et al. 2018, https://arxiv.org/abs/1711.04956).
* `"beam"`: where the true title falls out of the beam, it becomes likelier than what drove it out. Beam search
  optimization (Wiseman and Rush 2016, https://arxiv.org/abs/1606.02960), of log-probabilities and with a cost of 1.

Letters: B documents, S source length, T title length, K beams, G titles of each document, the true one first, R = B *
G rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .directions_bidir_seq2seq import IGNORE_INDEX, Direction, pack_labels
from .extras import extra
from .metrics import pair_scores
from .modeling_bidir_seq2seq import BidirSeq2SeqEncoderOutput, BidirSeq2SeqForConditionalGeneration
from .output_bidir_seq2seq import IMPOSSIBLE, Words, Written
from .pipeline import SOURCES
from .unknown_words import decode_to_compare

with extra("train"):
    import sacrebleu
    from rapidfuzz.distance import Levenshtein


@dataclass
class Risk:
    """The cost that a title has on average if it is drawn from some candidates as the model would write them.

    Of a document's candidates y with costs c(y) it is the sum of c(y) Q(y), where Q(y) is p(y) to the power of
    `sharpness`, divided by the sum of that over all candidates (Shen et al. 2016, eq. 9-11). Its gradient is that of a
    cross-entropy in which each candidate counts `sharpness * Q(y) * (mean cost - c(y))`: it is computed so, by a
    second pass through the output layer.

    Attributes:
        costs: `[B, G]`, of each of a document's titles: 0 is best; infinite, as that of the true one may be, where it
            is none to choose. A cost counts once for each word of the true title, so that it can stand beside the
            cross-entropy.
        sharpness: 0 takes all candidates for equally likely, 1 for as likely as the model does, more prefers the
            likeliest.
        true_share: Of the loss, between 0 and 1, which is the true title's cross-entropy.
    """

    costs: torch.Tensor
    sharpness: float
    true_share: float

    def __call__(
        self,
        words: Words,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss per word of the true titles, averaged over the directions.

        Args:
            words: Of the documents.
            written: By each direction, of R rows.
            targets: Of each direction, `[R, T]`, -100 where there is none.
            num_items: Words of true titles to average over. Default: those that are there.
        """
        lengths = (targets[0] != IGNORE_INDEX).sum(1).view(self.costs.shape)[:, 0]
        # Made here, as `log_probs` would make and keep it without gradients.
        assert words.base is not None
        known, weights = self.costs.new_zeros(()), []
        for direction in zip(written, targets):
            scores = words.log_probs(*direction).sum(1).view(self.costs.shape)
            is_counted = self.costs.isfinite() & scores.isfinite()
            costs, scores = self.costs.masked_fill(~is_counted, 0), scores.masked_fill(~is_counted, 0)
            # Of a document without candidates nothing counts but the true title.
            least = torch.finfo(scores.dtype).min
            shares = (self.sharpness * scores).masked_fill(~is_counted, least).softmax(1) * is_counted
            expected = (shares * costs).sum(1, keepdim=True)
            own = (1 - self.true_share) * self.sharpness * shares * (expected - costs) * lengths[:, None]
            known = known + (own * scores).sum() + (1 - self.true_share) * (expected[:, 0] * lengths).sum()
            own[:, 0] += self.true_share
            weights.append(own.view(-1, 1).expand_as(direction[1]))
        # What the cross-entropies of candidates add up to is no cost: they stand for its gradient alone.
        total = words.weighed_sum(written, targets, weights) + known
        return total / (num_items if num_items is not None else lengths.sum().clamp(min=1)) / len(targets)


@dataclass
class BeamMargin:
    """By how much the scores of what drove the true title out of the beam are too high.

    Attributes:
        weights: For each direction `[R, T]`, in its writing order: how much the cross-entropy of each word counts, of
            the true titles above 0, of their rivals below.
        margins: What is added up for all rivals of all directions, in nats.
        num_titles: G.
    """

    weights: list[torch.Tensor]
    margins: float
    num_titles: int

    def __call__(
        self,
        words: Words,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The loss per word of the true titles, averaged over the directions; arguments as of [`Risk`]."""
        total = words.weighed_sum(written, targets, self.weights) + self.margins
        if num_items is None:
            num_items = (targets[0][:: self.num_titles] != IGNORE_INDEX).sum().clamp(min=1)
        return total / num_items / len(targets)


@dataclass
class Rival:
    """What a direction's beam held when the true title fell out of it.

    Attributes:
        document: Whose.
        first, end: From which to before which word of the true title it was ahead.
        words: The true ones before, and its own from `first` on, in the direction's writing order.
    """

    document: int
    first: int
    end: int
    words: list[int]


@torch.no_grad()
def rivals(
    model: BidirSeq2SeqForConditionalGeneration,
    encoder_outputs: BidirSeq2SeqEncoderOutput,
    direction: Direction,
    targets: torch.LongTensor,
    num_beams: int,
    margin: float,
) -> list[Rival]:
    """Searches beside the true title, and begins anew at it each time that it falls out of the beam.

    It has fallen out where its score is not above that of the last of K other hypotheses by the margin; at its end,
    that of the best (Wiseman and Rush 2016, section 4).

    Args:
        model: Not in training, so that nothing is left to chance.
        encoder_outputs: Of the documents.
        direction: Alone, its twin off.
        targets: `[B, T]`, the true titles in its writing order, -100 where there is none.
        num_beams: K.
        margin: In nats.
    """
    steps: Any = model.model.start_steps(encoder_outputs, direction.name)
    next_tokens: Any = model.words(encoder_outputs).next_tokens(None, [direction.name])
    batch_size, device = len(targets), targets.device
    lengths = (targets != IGNORE_INDEX).sum(1)
    documents = torch.arange(batch_size, device=device)
    # K others and, last, the true title: what each has read, and the sum of its log-probabilities.
    read = torch.full((batch_size, num_beams + 1, 1), direction.start_id, device=device)
    scores = torch.full((batch_size, num_beams + 1), IMPOSSIBLE, device=device)
    scores[:, -1] = 0
    first = torch.zeros_like(lengths)
    never = [direction.pad_id, direction.start_id, model.config.unk_token_id]
    found = []
    for place in range(targets.shape[1]):
        features = steps.step(read[None, :, :, -1]).features[0]
        log_probs = next_tokens.log_probs(features, None, read if next_tokens.reads_written else None)
        true = targets[:, place].clamp(min=0)
        true_scores = scores[:, -1] + log_probs[documents, -1, true]
        log_probs[:, :, never] = IMPOSSIBLE
        log_probs[documents, -1, true] = IMPOSSIBLE
        # What has ended stays as it is, among those that go on.
        ended = (read == direction.end_id).any(2)
        log_probs.masked_fill_(ended[..., None], IMPOSSIBLE)
        log_probs[..., direction.pad_id].masked_fill_(ended, 0)
        best, chosen = (scores[..., None] + log_probs).flatten(1).topk(num_beams)
        parents, tokens = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        parents = torch.cat([parents, parents.new_full((batch_size, 1), num_beams)], dim=1)
        tokens = torch.cat([tokens, true[:, None]], dim=1)
        read = torch.cat([read[documents[:, None], parents], tokens[..., None]], dim=2)
        scores = torch.cat([best, true_scores[:, None]], dim=1)

        rank = torch.where(lengths - 1 == place, 0, num_beams - 1)
        least = scores[documents, rank]
        out = (place < lengths) & least.isfinite() & (true_scores < least + margin)
        for document in out.nonzero().flatten().tolist():
            words = [word for word in read[document, rank[document], 1:].tolist() if word != direction.pad_id]
            found.append(Rival(document, int(first[document]), place + 1, words))
        first = torch.where(out, place + 1, first)
        parents = torch.where(out[:, None], num_beams, parents)
        read = torch.where(out[:, None, None], read[:, -1:], read)
        scores[:, :-1] = scores[:, :-1].masked_fill(out[:, None], IMPOSSIBLE)
        steps.reorder(parents[None])
    return found


def rouge_cost(titles: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 less ROUGE-L's F1 of each pair, 0 to 1."""
    return [1 - score / 100 for score in pair_scores(titles, references)["rougeL"]]


def chrf_cost(titles: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 less chrF of each pair, 0 to 1."""
    pairs = zip(titles, references)
    return [1 - sacrebleu.sentence_chrf(title, [reference]).score / 100 for title, reference in pairs]


def edit_cost(titles: Sequence[str], references: Sequence[str]) -> list[float]:
    """Insertions, deletions and substitutions of what stands between spaces, such as phonemes, for each of the longer
    one's, 0 to 1."""
    pairs = zip(titles, references)
    return [Levenshtein.normalized_distance(title.split(), reference.split()) for title, reference in pairs]


# What a title costs, by the name of `sequence_metric`.
COSTS: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "rougeL": rouge_cost,
    "chrf": chrf_cost,
    "per": edit_cost,
}


def _source_of(inputs: dict) -> dict:
    """Of a batch what `generate` and the model's forward both take.

    A collator's `decoder_input_ids`, made of the true titles alone, are left out.
    """
    return {name: inputs[name] for name in (*SOURCES, "inputs_embeds") if name in inputs}


class RiskInputs:
    """Makes of a batch of pairs one of candidates and their costs.

    Args:
        tokenizer: The model's.
        metric: A name of `COSTS`.
        num_candidates: K.
        sharpness, true_share: As for [`Risk`].

    Raises:
        ValueError: On another metric or numbers that mean nothing.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        metric: str,
        num_candidates: int = 4,
        sharpness: float = 1.0,
        true_share: float = 0.3,
    ):
        if metric not in COSTS:
            raise ValueError(f"sequence_metric={metric!r} must be one of {', '.join(COSTS)}")
        if num_candidates < 2:
            raise ValueError(f"sequence_num_beams={num_candidates} must be at least 2: one title is no choice")
        if sharpness <= 0:
            raise ValueError(f"sequence_sharpness={sharpness} must be above 0: at 0 no candidate could gain")
        _check_true_share(true_share)
        self.tokenizer, self.cost, self.num_candidates = tokenizer, COSTS[metric], num_candidates
        self.sharpness, self.true_share = sharpness, true_share

    def __call__(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict) -> dict:
        """What the model's forward takes instead of a batch.

        Args:
            model: What writes the candidates; in training or not, it stays so.
            inputs: `input_ids` `[B, S]` and `labels` `[B, T]`, and what else a collator gives.

        Returns:
            What `inputs` say of the source, with `labels` `[R, T]`, of each document the true title and then those
            that each direction alone wrote, with the objective, and with `use_twin` off, as they are ranked so.
        """
        titles = self._titles(model, inputs)
        texts = self._texts(titles.flatten(0, 1), model.config.vocab_size)
        references = [text for text in texts[:: titles.shape[1]] for _ in range(titles.shape[1])]
        costs = torch.tensor(self.cost(texts, references), dtype=torch.float32, device=titles.device)
        costs = costs.view(titles.shape[:2])
        repeats = (titles[:, :, None] == titles[:, None]).all(-1).tril(-1)
        # The true title is no candidate, but what the model writes may be the same.
        costs = costs.masked_fill(repeats[:, :, 1:].any(-1), float("inf"))
        costs[:, 0] = float("inf")
        risk = Risk(costs, self.sharpness, self.true_share)
        return {**_source_of(inputs), "labels": titles.flatten(0, 1), "objective": risk, "use_twin": False}

    @torch.no_grad()
    def _titles(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict) -> torch.Tensor:
        """`[B, G, T]`, each ending in the end id, -100 after it."""
        labels = inputs["labels"]
        read = _source_of(inputs)
        was_training = model.training
        found = [labels[:, None]]
        model.eval()
        for direction in model.directions:
            sequences = model.generate(
                **read,
                decoding_direction=direction.name,
                num_beams=self.num_candidates,
                num_return_sequences=self.num_candidates,
                do_sample=False,
                ranking="own",
                # One that does not end is cut where the batch's longest true title ends.
                max_new_tokens=labels.shape[1],
            )
            found.append(self._labels(sequences, model.config).unflatten(0, (len(labels), -1)))
        model.train(was_training)
        length = max(titles.shape[2] for titles in found)
        return torch.cat([F.pad(x, (0, length - x.shape[2]), value=IGNORE_INDEX) for x in found], dim=1)

    @staticmethod
    def _labels(sequences: torch.Tensor, config: BidirSeq2SeqConfig) -> torch.Tensor:
        """Sequences `[R, L]` with their start to labels `[R, L]`: titles that were cut get an end."""
        pad_id, end_id = cast(int, config.pad_token_id), cast(int, config.eos_token_id)
        titles = F.pad(sequences[:, 1:], (0, 1), value=pad_id)
        is_word = torch.ne(titles, pad_id) & torch.ne(titles, end_id)
        lengths = is_word.sum(1, keepdim=True)
        places = torch.arange(titles.shape[1], device=titles.device)
        ends = torch.where(places == lengths, end_id, IGNORE_INDEX)
        return torch.where(places < lengths, titles, ends)

    def _texts(self, titles: torch.Tensor, vocab_size: int) -> list[str]:
        ids = titles.masked_fill(titles == IGNORE_INDEX, self.tokenizer.pad_token_id)
        # No candidate holds the unknown token, only a true title.
        return decode_to_compare(self.tokenizer, ids.tolist(), vocab_size, are_references=True)


class BeamInputs:
    """Makes of a batch of pairs one of true titles and what drives them out of the beam.

    Args:
        num_beams: K.
        margin: In nats; true titles shall be so far above.
        true_share: Of the loss, between 0 and 1, which is the true title's cross-entropy.

    Raises:
        ValueError: On numbers that mean nothing.
    """

    def __init__(self, num_beams: int = 4, margin: float = 1.0, true_share: float = 0.3):
        if num_beams < 1:
            raise ValueError(f"sequence_num_beams={num_beams} must be at least 1")
        if margin < 0:
            raise ValueError(f"sequence_margin={margin} must be at least 0")
        _check_true_share(true_share)
        self.num_beams, self.margin, self.true_share = num_beams, margin, true_share

    @torch.no_grad()
    def __call__(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict) -> dict:
        """What the model's forward takes instead of a batch; arguments and result as of [`RiskInputs`]."""
        source = _source_of(inputs)
        was_training = model.training
        model.eval()
        encoder_outputs = model.get_encoder()(**source, return_dict=True)
        labels = pack_labels(inputs["labels"])
        found = [
            rivals(model, encoder_outputs, direction, direction.targets(labels), self.num_beams, self.margin)
            for direction in model.directions
        ]
        model.train(was_training)
        titles, objective = self._lay_out(labels, found, model.directions)
        return {**source, "labels": titles, "objective": objective, "use_twin": False}

    def _lay_out(
        self, labels: torch.Tensor, found: Sequence[Sequence[Rival]], directions: Sequence[Direction]
    ) -> tuple[torch.Tensor, BeamMargin]:
        """True titles `[B, T]` and the rivals of each direction to titles `[B * G, T']`, and what becomes of them."""
        of_document: list[list[list[int]]] = [[] for _ in labels]
        spans: list[list[tuple[int, int, slice, float]]] = [[] for _ in directions]
        share = 1 - self.true_share
        for own, direction, of_direction in zip(spans, directions, found):
            for rival in of_direction:
                of_document[rival.document].append(_reading_order(rival.words, direction))
                place = len(of_document[rival.document])
                own.append((rival.document, place, slice(rival.first, len(rival.words)), -share))
                own.append((rival.document, 0, slice(rival.first, rival.end), share))
        length = max([labels.shape[1], *(len(words) for own in of_document for words in own)])
        num_titles = 1 + max(len(own) for own in of_document)
        titles = labels.new_full((len(labels), num_titles, length), IGNORE_INDEX)
        titles[:, 0, : labels.shape[1]] = labels
        for document, in_order in enumerate(of_document):
            for place, words in enumerate(in_order, start=1):
                titles[document, place, : len(words)] = torch.tensor(words, device=labels.device)
        weights = [torch.zeros(titles.shape, device=labels.device) for _ in directions]
        for of_words, own in zip(weights, spans):
            of_words[:, 0] = self.true_share
            for document, place, span, weight in own:
                of_words[document, place, span] += weight
        margins = share * self.margin * sum(len(of_direction) for of_direction in found)
        return titles.flatten(0, 1), BeamMargin([own.flatten(0, 1) for own in weights], margins, num_titles)


def _reading_order(words: list[int], direction: Direction) -> list[int]:
    """What a direction has written, its end perhaps the last, as the beginning or end of a title."""
    if not direction.is_reversed:
        return words
    if words[-1] == direction.end_id:
        return [*reversed(words[:-1]), direction.start_id]
    return words[::-1]


def _check_true_share(true_share: float) -> None:
    if not 0 <= true_share < 1:
        raise ValueError(f"sequence_true_share={true_share} must be at least 0 and below 1: at 1 nothing else counts")


__all__ = [
    "COSTS",
    "BeamInputs",
    "BeamMargin",
    "Risk",
    "RiskInputs",
    "Rival",
    "chrf_cost",
    "edit_cost",
    "rivals",
    "rouge_cost",
]
