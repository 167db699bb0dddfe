"""Training by what whole titles are worth: what a model writes is scored, and the better of it becomes likelier.

Minimum risk training (Shen et al. 2016, https://arxiv.org/abs/1512.02433), with the model's own n-best as candidates
and the cross-entropy of the true title beside the risk (Edunov et al. 2018, https://arxiv.org/abs/1711.04956).

Letters: B documents, S source length, T title length, K candidates of each direction, G = 1 + K for each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from .configuration_bidir_seq2seq import BidirSeq2SeqConfig
from .directions_bidir_seq2seq import IGNORE_INDEX
from .extras import extra
from .metrics import pair_scores
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .output_bidir_seq2seq import Risk
from .unknown_words import decode, placeholders

with extra("train"):
    import sacrebleu
    from rapidfuzz.distance import Levenshtein


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


# What a title costs, by the name of `risk_metric`.
COSTS: dict[str, Callable[[Sequence[str], Sequence[str]], list[float]]] = {
    "rougeL": rouge_cost,
    "chrf": chrf_cost,
    "per": edit_cost,
}


# What `generate` and the model's forward both take of a source.
SOURCE_INPUTS = ("input_ids", "attention_mask", "extended_input_ids", "inputs_embeds")


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
            raise ValueError(f"risk_metric={metric!r} must be one of {', '.join(COSTS)}")
        if num_candidates < 2:
            raise ValueError(f"risk_num_candidates={num_candidates} must be at least 2: one title is no choice")
        if sharpness <= 0:
            raise ValueError(f"risk_sharpness={sharpness} must be above 0: at 0 no candidate could gain")
        if not 0 <= true_share < 1:
            raise ValueError(f"risk_true_share={true_share} must be at least 0 and below 1: at 1 nothing is at risk")
        self.tokenizer, self.cost, self.num_candidates = tokenizer, COSTS[metric], num_candidates
        self.sharpness, self.true_share = sharpness, true_share

    def __call__(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict) -> dict:
        """What the model's forward takes instead of a batch.

        Args:
            model: What writes the candidates; in training or not, it stays so.
            inputs: `input_ids` `[B, S]` and `labels` `[B, T]`, and what else a collator gives.

        Returns:
            What `inputs` say of the source, with `labels` `[B * G, T]`, of each document the true title and then those that each direction
            alone wrote, with `risk`, and with `use_twin` off, as candidates are ranked by each direction alone.
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
        # A collator's decoder_input_ids are made of the true titles alone.
        source = {name: inputs[name] for name in SOURCE_INPUTS if name in inputs}
        return {**source, "labels": titles.flatten(0, 1), "risk": risk, "use_twin": False}

    @torch.no_grad()
    def _titles(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict) -> torch.Tensor:
        """`[B, G, T]`, each ending in the end id, -100 after it."""
        labels = inputs["labels"]
        read = {name: inputs[name] for name in SOURCE_INPUTS if name in inputs}
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
        pad_id, end_id = config.pad_token_id, config.eos_token_id
        titles = F.pad(sequences[:, 1:], (0, 1), value=pad_id)
        is_word = (titles != pad_id) & (titles != end_id)
        lengths = is_word.sum(1, keepdim=True)
        places = torch.arange(titles.shape[1], device=titles.device)
        ends = torch.where(places == lengths, end_id, IGNORE_INDEX)
        return torch.where(places < lengths, titles, ends)

    def _texts(self, titles: torch.Tensor, vocab_size: int) -> list[str]:
        ids = titles.masked_fill(titles == IGNORE_INDEX, self.tokenizer.pad_token_id).cpu()
        # A word outside the vocabulary is the same word only if it is the same one of its document.
        words = placeholders(max(int(ids.max()) + 1 - vocab_size, 0))
        return [decode(self.tokenizer, row, words, vocab_size) for row in ids.tolist()]


__all__ = ["COSTS", "RiskInputs", "chrf_cost", "edit_cost", "rouge_cost"]
