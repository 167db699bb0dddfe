"""How much each feature of a title should weigh in ranking, learned from held-out pairs.

The candidates of every pair are written once, with their features (`ranking_bidir_seq2seq.FEATURES`) and scores; then
plain weights and random ones are tried on these numbers alone (Bergstra and Bengio 2012, "Random Search for
Hyper-Parameter Optimization"). What the weights are worth is told by pairs that they were not chosen on.

Letters: B documents of a batch, M candidates of each, P pairs, F features that the model's directions know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .evaluation import listed_references
from .metrics import (
    BootstrapResult,
    Tokenization,
    bleu_counts,
    bleu_of_counts,
    pair_scores,
    paired_bootstrap,
    pronunciation_scores,
    resolved,
)
from .output_bidir_seq2seq import IMPOSSIBLE
from .pipeline import BidirSeq2SeqPipeline
from .ranking_bidir_seq2seq import FEATURES, Candidates, features_of, own
from .titles import write_titles
from .unknown_words import decode

if TYPE_CHECKING:
    from datasets import Dataset

# Of fewer pairs even the bootstrap's interval says little.
FEW_PAIRS = 30
# What can be tuned for, and whether more of it is better.
METRICS = {"rougeL": True, "bleu": True, "wer": False}
# Weights that others must do better than: as `ranking="joint"` and `"consensus"` weigh, and the latter with a little
# of the former. Where there is one direction, the other's are left out.
PLAIN: list[dict[str, float]] = [
    {"l2r": 0.5, "r2l": 0.5},
    {"consensus": 1.0},
    {"consensus": 1.0, "l2r": 0.05, "r2l": 0.05},
]


@dataclass
class CandidatePool:
    """What was written of each pair.

    Attributes:
        names: The F features, some of `FEATURES`.
        features: `[P, M, F]`, in the order of `names`; 0 where there is no candidate.
        exists: `[P, M]` bool.
        scores: `[P, M]` in percent; for BLEU `[P, M, 10]`, as for `metrics.bleu_of_counts`.
        written: `[P]` or `[P, 10]`, of what the model writes as it is.
        metric: Of `METRICS`.
    """

    names: tuple[str, ...]
    features: np.ndarray
    exists: np.ndarray
    scores: np.ndarray
    written: np.ndarray
    metric: str

    def vector(self, weights: Mapping[str, float]) -> np.ndarray:
        """Weights by name as `[F]`; of what the model does not know there are none."""
        return np.array([weights.get(name, 0.0) for name in self.names])

    def chosen(self, weights: np.ndarray) -> np.ndarray:
        """The scores, `[P]` or `[P, 10]`, of each pair's best candidate by some weights `[F]`."""
        ranks = np.where(self.exists, self.features @ weights, -np.inf)
        return self.scores[np.arange(len(ranks)), ranks.argmax(1)]

    def value(self, weights: np.ndarray, pairs: np.ndarray) -> float:
        """The metric over some pairs, of the candidates that weights choose, so that more is better."""
        value = self.over(self.chosen(weights)[pairs])
        return value if METRICS[self.metric] else -value

    def over(self, scores: np.ndarray) -> float:
        """The metric over pairs that have some scores, `[n]` or `[n, 10]`."""
        mean = scores.mean(0)
        return float(bleu_of_counts(mean) if self.metric == "bleu" else mean)

    def difference(self, scores: np.ndarray, others: np.ndarray) -> BootstrapResult:
        """That of the metric between two ways of writing the same pairs, `[n]` or `[n, 10]` scores of each."""
        statistic: Callable | None = bleu_of_counts if self.metric == "bleu" else None
        return paired_bootstrap(scores.tolist(), others.tolist(), statistic=statistic)


@dataclass
class TunedRanking:
    """Weights, and what they are worth.

    Attributes:
        weights: For `generate(ranking=...)`, those of features that weigh something.
        metric: What they were chosen for.
        before: The metric of what the model writes as it is.
        tuned: That by weights, each pair's of those that the other half of the pairs chose.
        difference: Of the two, with a paired bootstrap over the pairs.
        pairs: How many there were.
    """

    weights: dict[str, float]
    metric: str
    before: float
    tuned: float
    difference: BootstrapResult
    pairs: int

    @property
    def is_better(self) -> bool:
        """Whether tuned weights do better on pairs they were not chosen on, and not by chance (at 95 %); of few pairs
        nobody can tell."""
        return self.pairs >= FEW_PAIRS and _is_gain(self.metric, self.difference)


def _is_gain(metric: str, difference: BootstrapResult) -> bool:
    is_ahead = difference.low > 0 if METRICS[metric] else difference.high < 0
    return is_ahead and difference.p_value <= 0.05


def write_candidates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    metric: str = "rougeL",
    batch_size: int = 32,
    tokenization: Tokenization = "auto",
    progress: bool = False,
    **generate_kwargs: Any,
) -> CandidatePool:
    """Writes all candidates of each pair, with their features and scores, and what the model writes as it is.

    Args:
        model: Of twins that have learned to write alone, or of one direction; it stays where it is.
        tokenizer: Its tokenizer.
        pairs: Held-out ones, as from `evaluation.load_test_pairs`; those without source or title are left out.
        metric: Of `METRICS`.
        batch_size: Documents per `generate` call.
        tokenization: What a token is for the metric, as for `TitleScore.compute`.
        progress: Whether to show a progress bar.
        **generate_kwargs: As for `generate`, of the candidates: `proposals`, `num_beams`, `length_penalty`, ...

    Raises:
        ValueError: On another metric or library's model, twins that cannot write alone, too few pairs, or as
            `generate` does.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} must be one of {', '.join(METRICS)}")
    config = model.config
    if not hasattr(config, "decoder_directions"):
        raise ValueError(
            f"{config.name_or_path}: only a model of this library ranks by weights, not {config.model_type!r}"
        )
    if config.decoder_directions == "both" and config.twin_dropout == 0:
        raise ValueError(
            f"{config.name_or_path}: the directions of this model have not learned to write alone (twin_dropout=0), "
            "and what either thinks of a title means nothing: train with twin_dropout=0.5"
        )
    rows = [
        (source, references)
        for source, references in zip(pairs["source"], listed_references(pairs))
        if (source or "").strip() and any(text.strip() for text in references)
    ]
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} pairs are too few to choose weights on: give some hundreds")
    sources = [source for source, _ in rows]
    as_it_is = write_titles(model, tokenizer, sources, batch_size, progress=progress, num_return_sequences=1)
    names = features_of(config.decoder_directions)
    pipeline = BidirSeq2SeqPipeline(model=model, tokenizer=tokenizer, device=model.device)
    # Similar lengths pad less.
    order = sorted(range(len(rows)), key=lambda index: len(sources[index]), reverse=True)
    found: dict[int, tuple[np.ndarray, list[str]]] = {}
    with tqdm(total=len(rows), desc="Writing candidates", unit=" pairs", disable=not progress) as bar:
        for first in range(0, len(order), batch_size):
            some = order[first : first + batch_size]
            inputs, words = pipeline.batch([sources[index] for index in some])
            kept = _Kept(names)
            model.generate(**inputs, **{**generate_kwargs, "ranking": kept})
            for index, rows_of, titles, known in zip(some, kept.features, kept.titles, words):
                found[index] = rows_of, [decode(tokenizer, ids, known, config.vocab_size) for ids in titles]
            bar.update(len(some))
    most = max(len(texts) for _, texts in found.values())
    exists = np.array([[place < len(found[index][1]) for place in range(most)] for index in range(len(rows))])
    features = np.zeros((*exists.shape, len(names)))
    features[exists] = np.concatenate([found[index][0] for index in range(len(rows))])
    all_references = [references for _, references in rows]
    # Candidates and what the model writes are scored apart, and pronunciations one by one: by the same tokens.
    tokenization = resolved(tokenization, all_references)
    by_title = _scores_of(
        [text for index in range(len(rows)) for text in found[index][1]],
        [references for index, references in enumerate(all_references) for _ in found[index][1]],
        metric,
        tokenization,
    )
    scores = np.zeros((*exists.shape, *by_title.shape[1:]))
    scores[exists] = by_title
    written = _scores_of([candidates[0].text for candidates in as_it_is], all_references, metric, tokenization)
    return CandidatePool(names, features, exists, scores, written, metric)


class _Kept:
    """A ranking as the searches have it, which keeps what it has seen of B documents.

    Attributes:
        names: Of the features that it keeps.
        features: Of each document those of its titles, `[n, F]`.
        titles: Of each document their ids. One that several searches have found is there as often.
    """

    features: list[np.ndarray]
    titles: list[list[list[int]]]

    def __init__(self, names: Sequence[str]):
        self.names = names

    def __call__(self, candidates: Candidates) -> torch.Tensor:
        features = torch.stack([FEATURES[name](candidates) for name in self.names], dim=-1)
        exists = candidates.scores > IMPOSSIBLE
        self.features = [rows[mask].double().cpu().numpy() for rows, mask in zip(features, exists)]
        self.titles = [ids[mask].tolist() for ids, mask in zip(candidates.sequences, exists)]
        return own(candidates)


def _scores_of(titles: list[str], references: list[list[str]], metric: str, tokenization: Tokenization) -> np.ndarray:
    """Of each title its score, or for BLEU its row of counts."""
    if metric == "rougeL":
        return np.array(pair_scores(titles, references, tokenization)["rougeL"])
    if metric == "bleu":
        return np.array(bleu_counts(titles, references, tokenization))
    errors = [pronunciation_scores([title], [listed], tokenization) for title, listed in zip(titles, references)]
    return np.array([found["wer"] for found in errors])


def random_weights(generator: np.random.Generator) -> dict[str, float]:
    """Weights to try: the two directions' add up to 1, about which the others are small or large."""
    weights = dict.fromkeys(FEATURES, 0.0)
    weights["l2r"] = generator.uniform()
    weights["r2l"] = 1 - weights["l2r"]
    # Each of the others only now and then, so that what does not help is left out.
    for name, scale in (("own", 0.3), ("consensus", 3.0), ("length", 0.03)):
        if generator.uniform() < 0.5:
            weights[name] = generator.choice([-1, 1]) * scale * 10 ** generator.uniform(-1, 1)
    weights["consensus"] = abs(weights["consensus"])
    return weights


def choose_weights(pool: CandidatePool, pairs: np.ndarray, num_trials: int = 2000, seed: int = 0) -> np.ndarray:
    """The best weights `[F]` on some pairs of a pool: plain ones, or of `num_trials` random ones the best.

    Of so many some do better by chance, so they must do better than the plain ones beyond it (at 95 %).
    """
    generator = np.random.default_rng(seed)
    tried = [pool.vector(random_weights(generator)) for _ in range(num_trials)]
    values = [pool.value(weights, pairs) for weights in tried]
    # What the best have in common is less a matter of chance than the best one.
    best = sorted(range(len(tried)), key=lambda index: -values[index])[: max(1, num_trials // 100)]
    mean = np.mean([tried[index] for index in best], axis=0)
    found = max([mean, tried[best[0]]], key=lambda weights: pool.value(weights, pairs))
    plain = max(map(pool.vector, PLAIN), key=lambda weights: pool.value(weights, pairs))
    gain = pool.difference(pool.chosen(found)[pairs], pool.chosen(plain)[pairs])
    return found if _is_gain(pool.metric, gain) else plain


def tune_ranking(pool: CandidatePool, num_trials: int = 2000, seed: int = 0) -> TunedRanking:
    """Chooses weights on all pairs, and tells what such a choice is worth: chosen on one half, tried on the other.

    Args:
        pool: Of [`write_candidates`].
        num_trials: How many weights to try.
        seed: Of chance.

    Raises:
        ValueError: If there is nothing to try.
    """
    if num_trials < 1:
        raise ValueError(f"num_trials={num_trials} must be at least 1")
    everything = np.arange(len(pool.scores))
    halves = everything[::2], everything[1::2]
    chosen = np.empty_like(pool.scores[:, 0])
    for tuned_on, tried_on in (halves, halves[::-1]):
        weights = choose_weights(pool, tuned_on, num_trials, seed)
        chosen[tried_on] = pool.chosen(weights)[tried_on]
    weights = choose_weights(pool, everything, num_trials, seed)
    return TunedRanking(
        {name: round(float(weight), 4) for name, weight in zip(pool.names, weights) if round(float(weight), 4)},
        pool.metric,
        pool.over(pool.written),
        pool.over(chosen),
        pool.difference(chosen, pool.written),
        pairs=len(everything),
    )


__all__ = [
    "FEW_PAIRS",
    "METRICS",
    "CandidatePool",
    "TunedRanking",
    "choose_weights",
    "random_weights",
    "tune_ranking",
    "write_candidates",
]
