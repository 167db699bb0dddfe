"""Word-level distillation: a student learns what its teachers hold each next word to be, beside the true one.

Teachers read what the student reads, the true words before each place, and have a probability for every word there.
The mean of these is a target beside the true word (Hinton et al. 2015, https://arxiv.org/abs/1503.02531; of sequences
Kim and Rush 2016, https://arxiv.org/abs/1606.07947, section 3.1; of several teachers Sun et al. 2019,
https://arxiv.org/abs/1904.03446). They read each batch as it comes: nothing is written or kept.

Letters: B pairs, R = B rows, S source length, T title length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .consistency import STEPS, over_places, some_places
from .directions_bidir_seq2seq import IGNORE_INDEX
from .loading import load_model, load_tokenizer
from .output_bidir_seq2seq import Words, Written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration

# What a pretrained encoder reads, of which a teacher has none.
OF_PRETRAINED = ("encoder_input_ids", "encoder_attention_mask", "encoder_positions")


@dataclass
class Opinion:
    """What a teacher makes of a batch: all that its words' probabilities come from.

    Attributes:
        words: Of the documents.
        written: What it has read of the titles, by each direction.
    """

    words: Words
    written: Sequence[Written]


@dataclass
class Taught:
    """The loss of a student: for the one part the cross-entropy of true words, for the other that of its teachers'.

    Attributes:
        opinions: Of each teacher, with the student's directions.
        share: Of the teachers' part.
        smoothing: Of the true words, as for [`Words.loss`].
    """

    opinions: Sequence[Opinion]
    share: float
    smoothing: float = 0.0

    def __call__(
        self,
        words: Words,
        written: Sequence[Written],
        targets: Sequence[torch.LongTensor],
        num_items: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Mean nats per target, averaged over the directions.

        Args:
            words: Of the documents.
            written: By each direction.
            targets: Of each direction, `[R, T]`, -100 where there is none.
            num_items: Targets of one direction to average over. Default: those that are there.
        """
        if num_items is None:
            num_items = (targets[0] != IGNORE_INDEX).sum().clamp(min=1)
        loss = words.loss(written, targets, num_items, self.smoothing)
        total = loss.new_zeros(())
        for number, (own, wanted) in enumerate(zip(written, targets)):
            theirs = [(opinion.words, opinion.written[number]) for opinion in self.opinions]
            total = total + over_places(soft_cross_entropy, words, own, wanted, theirs)
        return (1 - self.share) * loss + self.share * total / (num_items * len(targets))


def soft_cross_entropy(
    words: Words,
    written: Written,
    targets: torch.LongTensor,
    teachers: Sequence[tuple[Words, Written]],
    start: int = 0,
) -> torch.Tensor:
    """The cross-entropy of a student's probabilities under its teachers' mean, added up over the places `start` to
    `start + STEPS`.

    Args:
        words: The student's, of the documents.
        written: By one of its directions, of R rows.
        targets: `[R, T]`, -100 where there is none and nothing is added.
        teachers: The same of each teacher.
        start: The first place.

    Returns:
        A scalar, in nats.
    """
    log_probs = words.logits(some_places(written, start)).float().log_softmax(-1)
    with torch.no_grad():
        each = [theirs.logits(some_places(read, start)).float().softmax(-1) for theirs, read in teachers]
        probs = torch.stack(each).mean(0)
    is_target = targets[:, start : start + STEPS] != IGNORE_INDEX
    return -((probs * log_probs).sum(-1) * is_target).sum()


class TeacherInputs:
    """Has teachers read each batch of pairs, and makes it one that a student learns from.

    Args:
        teachers: Models of this package, of the student's words and with its directions.
        share: Of the teachers' part in the loss, above 0 and at most 1.

    Raises:
        ValueError: On another share, or without teachers.
    """

    def __init__(self, teachers: Sequence[BidirSeq2SeqForConditionalGeneration], share: float = 0.8):
        if not 0 < share <= 1:
            raise ValueError(f"soft_share={share:g} is the teachers' share of the loss: above 0 and at most 1")
        if not teachers:
            raise ValueError("there are no teachers: name at least one, or leave soft_teachers out")
        self.teachers, self.share = [teacher.eval().requires_grad_(False) for teacher in teachers], share

    def __call__(self, model: BidirSeq2SeqForConditionalGeneration, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the student's forward takes instead of a batch.

        Args:
            model: The student.
            inputs: `input_ids` `[B, S]` and `labels` `[B, T]`, and what else a collator gives.

        Returns:
            The same, and the objective.
        """
        opinions = [self._opinion(teacher.to(model.device), model, inputs) for teacher in self.teachers]
        return {**inputs, "objective": Taught(opinions, self.share, model.config.label_smoothing)}

    @staticmethod
    @torch.no_grad()
    def _opinion(
        teacher: BidirSeq2SeqForConditionalGeneration,
        model: BidirSeq2SeqForConditionalGeneration,
        inputs: dict[str, Any],
    ) -> Opinion:
        found: list[Opinion] = []

        def keep(words: Words, written: Sequence[Written], targets: Any, num_items: Any) -> torch.Tensor:
            found.append(Opinion(words, written))
            return torch.zeros(())

        read = {name: value for name, value in inputs.items() if name not in OF_PRETRAINED}
        directions = model.config.decoder_directions
        teacher(**{**read, "decoding_direction": directions, "use_twin": False, "objective": keep})
        return found[0]


def load_teachers(
    names: Sequence[str], model: BidirSeq2SeqForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> list[BidirSeq2SeqForConditionalGeneration]:
    """Teachers that a student can learn each word's probability from.

    Args:
        names: Folders, or names on the Hub.
        model, tokenizer: The student's.

    Raises:
        ValueError: If one is no model of this package, or has other words, or lacks a direction of the student.
    """
    teachers, config = [], model.config
    for name in names:
        teacher = load_model(name, "float32")
        if not isinstance(teacher, type(model)):
            raise ValueError(
                f"soft_teachers: {name} is a {type(teacher).__name__}, which has other words: let it write titles "
                "(`bidir-seq2seq distil`), or take a model of this package"
            )
        has_words = teacher.config.vocab_size == config.vocab_size
        if not has_words or load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"soft_teachers: {name} has other words than the student: give the student its tokenizer "
                f"(--tokenizer_name {name})"
            )
        if teacher.config.use_copy != config.use_copy:
            raise ValueError(
                f"soft_teachers: {name} has use_copy={teacher.config.use_copy}, and the student use_copy="
                f"{config.use_copy}: words to copy have a probability for one of them alone; make them alike"
            )
        if teacher.config.encoder_type == "pretrained":
            raise ValueError(
                f"soft_teachers: {name} reads pieces of a pretrained encoder's own tokenizer, which batches of the "
                "student do not hold: let it write titles (`bidir-seq2seq distil`)"
            )
        if teacher.config.decoder_directions not in ("both", config.decoder_directions):
            raise ValueError(
                f"soft_teachers: {name} writes {teacher.config.decoder_directions!r} alone, and the student "
                f"{config.decoder_directions!r}: take twins, or a teacher of the student's direction"
            )
        teachers.append(teacher)
    return teachers


__all__ = ["Opinion", "Taught", "TeacherInputs", "load_teachers", "soft_cross_entropy"]
