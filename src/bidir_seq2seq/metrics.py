"""Scores for short generated texts (titles, headlines) in any script, and the means to compare two systems.

The usual metrics assume English: ROUGE's default tokenizer keeps only ``[a-z0-9]`` and BLEU's default splits on
spaces, so that both give 0 to a perfect Chinese title. Here one tokenization, chosen by the script of the references,
feeds every score. Nothing is fetched from the network.

Tokens are lower-cased and never stemmed. The text is not Unicode-normalized: a full-width "2" differs from an ASCII
"2", which is an error a reader sees. Apply ``unicodedata.normalize("NFKC", text)`` to both sides to forgive it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from typing import Any, Literal, get_args

import numpy as np

from .charset import encoding_problem
from .extras import extra

with extra("train"):
    import datasets
    import evaluate
    import regex
    from rapidfuzz.distance import Levenshtein
    from rouge_score import rouge_scorer, tokenizers
    from sacrebleu.metrics import BLEU

Tokenization = Literal["auto", "char", "word"]
References = Sequence[str] | Sequence[Sequence[str]]

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
EDGE_LENGTH = 4
# Positions, from either end, of which `accuracy_by_position` tells.
POSITIONS = 10

# Hangul is written with spaces, but they separate phrases (a noun with its particles) rather than words, so that
# Korean too is scored by syllables.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# Marks belong to words: without them the vowel signs of Devanagari, among others, would split every word.
_ALPHANUMERIC = r"[\p{L}\p{M}\p{N}]"

_PATTERNS = {
    "char": regex.compile(r"\S"),
    "word": regex.compile(rf"(?V1)[{_ALPHANUMERIC}&&{_UNSPACED}]|[{_ALPHANUMERIC}--{_UNSPACED}]+"),
}
_LETTER = regex.compile(r"\p{L}")
_UNSPACED_LETTER = regex.compile(rf"(?V1)[\p{{L}}&&{_UNSPACED}]")

_BOOTSTRAP_CHUNK = 2**20


class _PassThrough(tokenizers.Tokenizer):
    """Lets `RougeScorer` take token lists where it expects texts."""

    def tokenize(self, text: list[str]) -> list[str]:
        return text


_ROUGE = rouge_scorer.RougeScorer(ROUGE_TYPES, tokenizer=_PassThrough())


class TitleScore(evaluate.Metric):
    """ROUGE, BLEU and head/tail accuracy of predicted titles, all in percent (0 to 100).

    An ordinary `evaluate.Metric` (`compute`, `add`, `add_batch`, `evaluate.combine`), instantiated directly:

        >>> TitleScore().compute(predictions=["中国增长经济"], references=["中国经济增长"])["rouge2"]
        60.0

    `compute` returns:

    - `rouge1`, `rouge2`, `rougeL`: mean over the pairs of the F1 of `rouge_score`; see `pair_scores`.
    - `bleu`: corpus BLEU of `sacrebleu` (up to 4-grams, "exp" smoothing) over the very tokens of ROUGE, hence
      lower-cased. By characters it agrees with sacrebleu's "zh" tokenizer on purely Chinese text; that one keeps
      numbers and Latin words whole.
    - `first4`, `last4`: share of the first (last) four tokens of the references that stand at the same place of the
      prediction, counted from its start (end), micro-averaged over these reference tokens. After the table of
      Zhou, Zhang and Zong (2019), "Synchronous Bidirectional Neural Machine Translation", arXiv 1905.04847: a
      left-to-right decoder gets more of the head right than of the tail, a right-to-left one the opposite. Of several
      references the one with the highest share counts.

    If no reference has any token, there is nothing to average for `bleu`, `first4` and `last4`: they are 100 if
    no prediction has any token either, else 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE, BLEU and head/tail accuracy of short texts, in percent, for any script.",
            citation="",
            inputs_description=self.compute.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def add(self, *, prediction: str, reference: str | Sequence[str]) -> None:
        """Adds one pair; see `compute`."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence[str], references: References) -> None:
        """Adds some pairs; see `compute`."""
        super().add_batch(predictions=predictions, references=_listed_references(predictions, references))

    def compute(
        self,
        *,
        predictions: Sequence[str] | None = None,
        references: References | None = None,
        tokenization: Tokenization = "auto",
    ) -> dict[str, float] | None:
        """Scores the given pairs, after those added before.

        Args:
            predictions: One text per pair.
            references: One text, or one non-empty list of texts, per pair; the lists may differ in length.
            tokenization: "char": every character but spaces is a token. "word": runs of letters, marks and digits
                are tokens, except that in Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese script every such
                character is; punctuation is dropped. "auto": "char" if most letters of the references are of these
                scripts, else "word".

        Returns:
            The scores listed in the class docstring, or `None` on all but the first of several processes.

        Raises:
            ValueError: If there are no pairs, the two lists differ in length, an element is not a text, a pair has no
                reference, or the tokenization is unknown.
        """
        # Checked before the base class opens its cache file, which an error in `_compute` would leave behind.
        _check_tokenization(tokenization)
        return super().compute(predictions=predictions, references=references, tokenization=tokenization)

    def _compute(
        self, predictions: list[str], references: list[list[str]], tokenization: Tokenization
    ) -> dict[str, float]:
        written, wanted = _tokenize_pairs(predictions, references, tokenization)
        scores = {name: float(np.mean(values)) for name, values in _rouge(written, wanted).items()}
        if not any(chain.from_iterable(wanted)):
            return scores | dict.fromkeys(("bleu", "first4", "last4"), 0.0 if any(written) else 100.0)
        return scores | {
            "bleu": _bleu(written, wanted),
            "first4": _edge_accuracy(written, wanted),
            "last4": _edge_accuracy(
                [prediction[::-1] for prediction in written],
                [[reference[::-1] for reference in alternatives] for alternatives in wanted],
            ),
        }


def pair_scores(
    predictions: Sequence[str], references: References, tokenization: Tokenization = "auto"
) -> dict[str, list[float]]:
    """ROUGE of every pair, of which `TitleScore` reports the means; input of `paired_bootstrap`.

    Of several references the best counts, separately for each score. A pair without any token on either side scores
    100; an empty prediction of a non-empty reference scores 0. A text of one token has no bigrams, hence `rouge2` 0.

    Args:
        predictions: One text per pair.
        references: One text, or one non-empty list of texts, per pair.
        tokenization: As for `TitleScore.compute`.

    Returns:
        F1 in percent per pair, for "rouge1", "rouge2" and "rougeL".

    Raises:
        ValueError: As for `TitleScore.compute`.
    """
    return _rouge(*_tokenize_pairs(predictions, _listed_references(predictions, references), tokenization))


def accuracy_by_position(
    predictions: Sequence[str],
    references: References,
    tokenization: Tokenization = "auto",
    num_positions: int = POSITIONS,
) -> dict[str, list[tuple[float, int]]]:
    """How often the n-th token of a title is that of its reference, counted from the start and from the end.

    Of several references the one with the most hits counts. With a single one, the hits of the first four positions
    over their tokens are `first4` of `TitleScore`, and from the end `last4`.

    Args:
        predictions: One text per pair.
        references: One text, or one non-empty list of texts, per pair.
        tokenization: As for `TitleScore.compute`.
        num_positions: How many positions to look at from either end.

    Returns:
        For "start" and "end" a pair for each position, the outermost first: the percentage of hits, and of how many
        references that are long enough. Positions that no reference reaches are left out.

    Raises:
        ValueError: As for `TitleScore.compute`, and if `num_positions` is not positive.
    """
    if num_positions < 1:
        raise ValueError(f"num_positions={num_positions} must be at least 1")
    tokens, alternatives = _tokenize_pairs(predictions, _listed_references(predictions, references), tokenization)
    accuracy = {}
    for end, step in (("start", 1), ("end", -1)):
        hits, totals = np.zeros(num_positions, dtype=int), np.zeros(num_positions, dtype=int)
        for prediction, listed in zip(tokens, alternatives, strict=True):
            matches = [_matches(prediction[::step], reference[::step][:num_positions]) for reference in listed]
            best = max(matches, key=sum)
            hits[: len(best)] += best
            totals[: len(best)] += 1
        accuracy[end] = [(100.0 * hit / total, int(total)) for hit, total in zip(hits, totals) if total]
    return accuracy


def pronunciation_scores(
    predictions: Sequence[str], references: References, tokenization: Tokenization = "auto"
) -> dict[str, float]:
    """Word and phoneme error rates of written pronunciations, in percent, each against its nearest reference.

    The phonemes are what stands between spaces, case and marks included; with "char", and with "auto" where the
    references are Chinese or the like, the characters that are not spaces. The nearest reference is the one with the
    fewest edits (insertions, deletions and substitutions) from the prediction, of equally near ones the longest.

    Args:
        predictions: One pronunciation per word.
        references: One pronunciation, or a non-empty list of those that are right, per word.
        tokenization: As for `TitleScore.compute`.

    Returns:
        `wer`, the share of words whose pronunciation is none of the references; and `per`, the edits to the nearest
        references over the phonemes of these. Without any phoneme in them `per` is 0 if there are no edits, else 100.

    Raises:
        ValueError: As for `TitleScore.compute`.
    """
    listed = _listed_references(predictions, references)
    by_character = resolved(tokenization, listed) == "char"
    wrong = edits = length = 0
    for prediction, alternatives in zip(predictions, listed, strict=True):
        written, *right = (
            list("".join(text.split())) if by_character else text.split() for text in (prediction, *alternatives)
        )
        distance, size = min((Levenshtein.distance(written, reference), -len(reference)) for reference in right)
        wrong += distance > 0
        edits += distance
        length -= size
    per = 100.0 * edits / length if length else 100.0 * bool(edits)
    return {"wer": 100.0 * wrong / len(predictions), "per": per}


def signatures(references: References, tokenization: Tokenization = "auto") -> dict[str, str]:
    """What has to be said of scores for others to get the same: tokens, number of references and versions.

    Args:
        references: As for `TitleScore.compute`.
        tokenization: As for `TitleScore.compute`.

    Returns:
        A line for `tokens`, `rouge` and `bleu`; the latter in the form of sacrebleu's own.

    Raises:
        ValueError: If the tokenization is unknown.
    """
    listed = [[reference] if isinstance(reference, str) else list(reference) for reference in references]
    by_character = resolved(tokenization, listed) == "char"
    numbers = {len(alternatives) for alternatives in listed}
    count = str(numbers.pop()) if len(numbers) == 1 else "var"
    tokens = "character" if by_character else "word"
    return {
        "tokens": f"{tokens}|case:lower|stem:no|normalized:no",
        "rouge": f"nrefs:{count}|measure:f1|average:pairs|version:rouge_score {version('rouge_score')}",
        "bleu": f"nrefs:{count}|case:lc|eff:no|tok:{tokens}|smooth:exp|version:{version('sacrebleu')}",
    }


@dataclass(frozen=True)
class BootstrapResult:
    """Outcome of `paired_bootstrap`, in the unit of its scores.

    Attributes:
        difference: Mean score of system a minus that of system b.
        low: Lower end of the 95 % percentile interval of the difference.
        high: Upper end of that interval.
        p_value: Two-sided p-value of the hypothesis that the systems do not differ, in (0, 1].
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    scores_a: Sequence[float] | Sequence[Sequence[float]],
    scores_b: Sequence[float] | Sequence[Sequence[float]],
    num_samples: int = 10_000,
    seed: int = 0,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
) -> BootstrapResult:
    """Tells whether the mean scores of two systems on the same test set differ by more than chance.

    The test set is resampled with replacement, keeping pairs of scores together (Koehn 2004, "Statistical Significance
    Tests for Machine Translation Evaluation", EMNLP). With d* the mean difference a - b in a resample and B the number
    of resamples,

        p = min(1, 2 * (1 + min(#{d* <= 0}, #{d* >= 0})) / (1 + B)),

    that is twice the share of resamples which do not confirm the winner; the added ones (Davison and Hinkley 1997,
    "Bootstrap Methods and their Application", section 4.2) keep finitely many resamples from claiming p = 0. Of n
    pairs it is at least 2 ** (1 - n), which is what a sign test makes of n that all say the same. The interval of few
    pairs (less than some thirty) is too narrow all the same, as they show too little of what else there is.

    Args:
        scores_a: Per-pair scores of system a, as from `pair_scores`.
        scores_b: Per-pair scores of system b on the same pairs in the same order.
        statistic: What a system's figure is of its pairs' mean score, or mean row of scores: `[..., k]` to `[...]`.
            Default: the mean score itself; [`bleu_of_counts`] for rows of counts.
        num_samples: Number B of resamples.
        seed: Seed of the resampling; equal seeds give equal results.

    Returns:
        The difference, its interval and its p-value.

    Raises:
        ValueError: If there are no scores, their numbers differ, or `num_samples` is not positive.
    """
    if len(scores_a) != len(scores_b):
        raise ValueError(f"got {len(scores_a)} scores_a but {len(scores_b)} scores_b; score the same pairs twice")
    if len(scores_a) == 0:
        raise ValueError("got no scores; give at least one pair")
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1; the default is 10000")
    a, b = (np.asarray(scores, dtype=float) for scores in (scores_a, scores_b))
    generator = np.random.default_rng(seed)
    differences = np.empty(num_samples)
    # All indices at once would take gigabytes for a large test set.
    step = max(1, _BOOTSTRAP_CHUNK // a.size)
    for start in range(0, num_samples, step):
        chunk = differences[start : start + step]
        indices = generator.integers(len(a), size=(len(chunk), len(a)))
        chunk[:] = _difference(a, b, indices, statistic)
    dissenting = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    low, high = np.quantile(differences, (0.025, 0.975))
    return BootstrapResult(
        difference=float(_difference(a, b, np.arange(len(a)), statistic)),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, max(2 * (1 + dissenting) / (1 + num_samples), 2.0 ** (1 - a.shape[0])))),
    )


def _difference(
    a: np.ndarray, b: np.ndarray, indices: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Of some pairs, `[..., n]`, how far system a is ahead of b, `[...]`."""
    if statistic is None:
        # Pair by pair, so that systems which are as good are exactly so: p counts such ties.
        return (a - b)[indices].mean(axis=-1)
    return statistic(a[indices].mean(axis=-2)) - statistic(b[indices].mean(axis=-2))


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002) of a corpus from its pairs' mean row of counts, without smoothing.

    Args:
        counts: `[..., 10]`: matches of n-grams of 1 to 4 tokens, n-grams written of 1 to 4 tokens, tokens written,
            tokens of the reference; as sacrebleu's `sentence_score` counts them.

    Returns:
        `[...]`, from 0 to 100.
    """
    matches, written, lengths = counts[..., :4], counts[..., 4:8], counts[..., 8:]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / written).mean(-1))
        brevity = np.exp(np.minimum(0, 1 - lengths[..., 1] / lengths[..., 0]))
        return 100 * np.nan_to_num(brevity * precision)


def bleu_counts(
    predictions: Sequence[str], references: References, tokenization: Tokenization = "auto"
) -> list[list[int]]:
    """What BLEU is made of, for each pair: the rows for `bleu_of_counts`, over the tokens of `TitleScore`.

    Args:
        predictions: One text per pair.
        references: One text, or one non-empty list of texts, per pair.
        tokenization: As for `TitleScore.compute`.

    Raises:
        ValueError: As for `TitleScore.compute`.
    """
    tokens, alternatives = _tokenize_pairs(predictions, _listed_references(predictions, references), tokenization)
    bleu = BLEU(tokenize="none", force=True, effective_order=True)
    rows = []
    for prediction, listed in zip(tokens, alternatives, strict=True):
        score = bleu.sentence_score(" ".join(prediction), [" ".join(reference) for reference in listed])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return rows


def bootstrap_interval(scores: Sequence[float], num_samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a mean score: between which means other test pairs might have given.

    Args:
        scores: Per-pair scores, as from `pair_scores`.
        num_samples: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: As for `paired_bootstrap`.
    """
    result = paired_bootstrap(scores, [0.0] * len(scores), num_samples, seed)
    return result.low, result.high


def split_tokens(text: str, tokenization: Tokenization = "auto") -> list[tuple[str, str | None]]:
    """A text cut into what the scores count and what they do not see.

    Args:
        text: Any text.
        tokenization: As for `TitleScore.compute`, "auto" looking at this very text.

    Returns:
        Pieces that together are the text, each with its token, or `None` for spaces and, by word, punctuation.

    Raises:
        ValueError: If the tokenization is unknown.
    """
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for match in _pattern(tokenization, [text]).finditer(text):
        if match.start() > end:
            pieces.append((text[end : match.start()], None))
        pieces.append((match.group(), match.group().lower()))
        end = match.end()
    return [*pieces, (text[end:], None)] if end < len(text) else pieces


def lead_baseline(
    documents: Sequence[str], summaries: Sequence[str], tokenization: Tokenization = "auto"
) -> list[str]:
    """The untrained baseline: the beginning of every document, as long as the average summary.

    Args:
        documents: Texts to summarize.
        summaries: Summaries, from the training set, whose mean number of tokens, rounded, is the number to keep.
        tokenization: As for `TitleScore.compute`, "auto" looking at the summaries.

    Returns:
        For every document its text, with case, spaces and punctuation, up to the end of the last token kept.

    Raises:
        ValueError: If there are no summaries, an argument holds anything but texts, or the tokenization is unknown.
    """
    _check_texts("documents", documents)
    _check_texts("summaries", summaries)
    if len(summaries) == 0:
        raise ValueError("got no summaries to take the length from; give a sample of the training summaries")
    pattern = _pattern(tokenization, summaries)
    length = round(np.mean([len(pattern.findall(summary)) for summary in summaries]))

    def lead(document: str) -> str:
        ends = [match.end() for match in islice(pattern.finditer(document), length)]
        return document[: ends[-1]].lstrip() if ends else ""

    return [lead(document) for document in documents]


def _check_texts(name: str, texts: Sequence[Any]) -> None:
    if isinstance(texts, str):
        raise ValueError(f"{name} is the single text {texts!r}; give a list of texts")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}] is {text!r}; give a text (str), if need be an empty one")
        if problem := encoding_problem(text):
            raise ValueError(f"{name}[{index}] holds half a sign, {text!r}: {problem}")


def _check_tokenization(tokenization: str) -> None:
    if tokenization not in get_args(Tokenization):
        raise ValueError(f"unknown tokenization {tokenization!r}; choose one of {', '.join(get_args(Tokenization))}")


def _listed_references(predictions: Sequence[str], references: References) -> list[list[str]]:
    """Checks the pairs and gives every prediction its list of references."""
    if predictions is None or references is None:
        raise ValueError("got only one of predictions and references; give both")
    _check_texts("predictions", predictions)
    if isinstance(references, str):
        raise ValueError(f"references is the single text {references!r}; give a list of texts")
    if len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions but {len(references)} references; give as many of each")
    if len(predictions) == 0:
        raise ValueError("got no predictions and references; give at least one pair")
    listed = []
    for index, reference in enumerate(references):
        alternatives: list[Any] = list(reference) if isinstance(reference, list | tuple) else [reference]
        if not alternatives:
            raise ValueError(f"references[{index}] is an empty list; give at least one reference per prediction")
        _check_texts(f"references[{index}]", alternatives)
        listed.append(alternatives)
    return listed


def resolved(tokenization: Tokenization, references: Sequence[Sequence[str]]) -> Literal["char", "word"]:
    """What "auto" is for the references of all pairs, which may then be scored in parts as they would be in one."""
    pattern = _pattern(tokenization, list(chain.from_iterable(references)))
    return "char" if pattern is _PATTERNS["char"] else "word"


def _pattern(tokenization: Tokenization, texts: Sequence[str]) -> regex.Pattern[str]:
    """The pattern of a token; "auto" is resolved by the letters of `texts`."""
    _check_tokenization(tokenization)
    if tokenization == "auto":
        letters = sum(len(_LETTER.findall(text)) for text in texts)
        unspaced = sum(len(_UNSPACED_LETTER.findall(text)) for text in texts)
        tokenization = "char" if 2 * unspaced > letters else "word"
    return _PATTERNS[tokenization]


def _tokenize_pairs(
    predictions: Sequence[str], references: list[list[str]], tokenization: Tokenization
) -> tuple[list[list[str]], list[list[list[str]]]]:
    pattern = _pattern(tokenization, list(chain.from_iterable(references)))

    def tokenize(text: str) -> list[str]:
        return [token.lower() for token in pattern.findall(text)]

    return [tokenize(text) for text in predictions], [[tokenize(text) for text in texts] for texts in references]


def _rouge(predictions: list[list[str]], references: list[list[list[str]]]) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {name: [] for name in ROUGE_TYPES}
    for prediction, alternatives in zip(predictions, references, strict=True):
        best = _ROUGE.score_multi(alternatives, prediction)
        both_empty = not prediction and [] in alternatives
        for name in ROUGE_TYPES:
            scores[name].append(100.0 if both_empty else 100.0 * best[name].fmeasure)
    return scores


def _bleu(predictions: list[list[str]], references: list[list[list[str]]]) -> float:
    hypotheses = [" ".join(prediction) for prediction in predictions]
    # sacrebleu wants the first references of all pairs, then the second ones, with None for those that lack.
    streams = list(zip_longest(*([" ".join(reference) for reference in alternatives] for alternatives in references)))
    # force: sacrebleu warns about spaced text, which here is meant.
    return BLEU(tokenize="none", force=True).corpus_score(hypotheses, streams).score


def _matches(prediction: list[str], reference: list[str]) -> list[bool]:
    """For each token of the reference whether the prediction has it at the same place."""
    return [ours == theirs for ours, theirs in zip_longest(prediction[: len(reference)], reference)]


def _edge_accuracy(predictions: list[list[str]], references: list[list[list[str]]]) -> float:
    """Percentage of the first tokens of the references found at their place, of which there must be some."""

    def count(prediction: list[str], reference: list[str]) -> tuple[int, int]:
        edge = reference[:EDGE_LENGTH]
        return sum(_matches(prediction, edge)), len(edge)

    counts = [
        max(
            (count(prediction, reference) for reference in alternatives),
            key=lambda hits_total: (hits_total[0] / max(hits_total[1], 1), hits_total[1]),
        )
        for prediction, alternatives in zip(predictions, references, strict=True)
    ]
    hits, total = map(sum, zip(*counts, strict=True))
    return 100.0 * hits / total


__all__ = [
    "ROUGE_TYPES",
    "BootstrapResult",
    "References",
    "TitleScore",
    "Tokenization",
    "accuracy_by_position",
    "bleu_counts",
    "bleu_of_counts",
    "bootstrap_interval",
    "lead_baseline",
    "pair_scores",
    "paired_bootstrap",
    "pronunciation_scores",
    "resolved",
    "signatures",
    "split_tokens",
]
