"""What twins do for each other: whether a decoder reads its own answer from its twin, and what it gains from it.

Letters: R rows, T target length, S source length.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import PairEncoder
from .directions_bidir_seq2seq import IGNORE_INDEX, pack_labels
from .evaluation import available_systems, listed_references, predict
from .metrics import TitleScore, accuracy_by_position, pair_scores
from .output_bidir_seq2seq import Written
from .titles import write_titles
from .unknown_words import TitleCollator

if TYPE_CHECKING:
    from datasets import Dataset

# What a decoder may read of its twin.
PARTNERS = ("none", "gold", "own")
# A title is looked at in so many parts, in the order of its writing.
PARTS = 10

Batch = Mapping[str, torch.Tensor]


@torch.no_grad()
def twin_log_probs(
    model: PreTrainedModel, batch: Batch, partner: str = "gold", labels_read: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """How likely each true word is to a decoder that reads the true ones before it, and its twin.

    Args:
        model: With two decoders.
        batch: `input_ids` `[R, S]`, `labels` `[R, T]` and what else `forward` takes of the source.
        partner: What is read of the twin: `"none"`, nothing; `"gold"`, the true words that it has to write;
            `"own"`, what it writes itself, alone, its likeliest word at each step.
        labels_read: `[R, T]`, what decoders and twins read instead of `labels`.

    Returns:
        For each direction `[R, T]`, natural log-probabilities in its order of writing, 0 where there is no word.

    Raises:
        ValueError: If there are no twins, or on another partner.
    """
    if model.config.decoder_directions != "both":
        raise ValueError(f"decoder_directions={model.config.decoder_directions!r}: one direction has no twin")
    if partner not in PARTNERS:
        raise ValueError(f"partner={partner!r} must be one of {', '.join(PARTNERS)}")
    source = {name: x for name, x in batch.items() if name != "labels"}
    encoded = model.get_encoder()(**source)
    labels = _packed(batch["labels"])
    read = labels if labels_read is None else _packed(labels_read)
    targets = [direction.targets(labels) for direction in model.directions]
    inputs = [direction.decoder_inputs(direction.targets(read)) for direction in model.directions]
    own = tuple(model.write_alone(encoded, labels.shape[1])) if partner == "own" else None
    outputs = model.model(
        decoder_input_ids=inputs[0],
        r2l_decoder_input_ids=inputs[1],
        encoder_outputs=encoded,
        use_twin=own or partner == "gold",
        return_dict=True,
    )
    words = model.words(encoded)
    features = (outputs.last_hidden_state, outputs.r2l_last_hidden_state)
    return {
        direction.name: words.log_probs(Written(own_features, direction.name, own_inputs), own_targets)
        for direction, own_features, own_inputs, own_targets in zip(model.directions, features, inputs, targets)
    }


@torch.no_grad()
def answer_leaks(model: PreTrainedModel, batch: Batch, partner: str = "gold") -> dict[str, torch.Tensor]:
    """What a decoder knows of the word that it has to write because its twin shows it.

    Each true word is replaced by another one, and the decoder that has to write it, but has not read it, is asked
    again how likely it is: any difference has come through the twin.

    Args:
        model, batch, partner: As for [`twin_log_probs`].

    Returns:
        For each direction `[R, T]` in its order of writing, log p(word | the twin may show it) - log p(word | the twin
        shows another), in nats; exactly 0 where nothing leaks, and where there is no word.

    Raises:
        ValueError: If the vocabulary has no two words.
    """
    labels = _packed(batch["labels"])
    is_word = (labels != IGNORE_INDEX) & (labels != model.config.eos_token_id)
    shown = twin_log_probs(model, batch, partner)
    leaks = {name: torch.zeros_like(values) for name, values in shown.items()}
    rows = torch.arange(len(labels), device=labels.device)
    special = {model.config.pad_token_id, model.config.unk_token_id, *_ends(model)}
    words = torch.tensor([index for index in range(model.config.vocab_size) if index not in special]).to(labels)
    if len(words) < 2:
        raise ValueError(f"a vocabulary of {len(words)} words has no other one to show in a word's place")
    for place in range(labels.shape[1]):
        other = labels.clone()
        # Any other word that is not special.
        number = torch.searchsorted(words, labels[:, place].contiguous())
        other[:, place] = words[(number + 1 + (len(words) - 1) // 2) % len(words)]
        other = torch.where(is_word, other, labels)
        hidden = twin_log_probs(model, batch, partner, labels_read=other)
        steps = {"l2r": torch.full_like(rows, place), "r2l": is_word.sum(1) - 1 - place}
        for name, values in leaks.items():
            chosen = rows[is_word[:, place]]
            step = steps[name][chosen]
            values[chosen, step] = (shown[name] - hidden[name])[chosen, step]
    return leaks


def _packed(labels: torch.Tensor) -> torch.LongTensor:
    return pack_labels(cast(torch.LongTensor, labels))


def _ends(model: PreTrainedModel) -> tuple[int, int]:
    return model.config.bos_token_id, model.config.eos_token_id


def by_part(values: Iterable[torch.Tensor], exists: Iterable[torch.Tensor]) -> list[float | None]:
    """The mean of values `[R, T]` where `exists` `[R, T]`, for each tenth of the rows' lengths, first to last."""
    sums, counts = torch.zeros(PARTS, dtype=torch.float64), torch.zeros(PARTS, dtype=torch.float64)
    for some, there in zip(values, exists):
        number = there.sum(1, keepdim=True).clamp(min=1)
        part = ((there.cumsum(1) - 1) * PARTS // number).clamp(0, PARTS - 1)[there].cpu()
        sums.index_add_(0, part, some[there].double().cpu())
        counts.index_add_(0, part, torch.ones(len(part), dtype=torch.float64))
    return [float(total / number) if number else None for total, number in zip(sums, counts)]


def diagnose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    batch_size: int = 32,
    num_beams: int = 3,
    progress: bool = False,
) -> dict[str, Any]:
    """Looks at a model's twins over held-out pairs.

    Args:
        model: With two decoders; it stays where it is and is put in evaluation mode.
        tokenizer: Its tokenizer.
        pairs: With columns `source` and `target`.
        batch_size: Pairs at a time.
        num_beams: Beams of a direction.
        progress: Whether to show progress bars.

    Returns:
        `log_probs`: for each direction and each of `PARTNERS` its mean log-probability of a true word, `mean`, and in
        each tenth of a title as it is written, `by_part`. `leak`: for each direction the same of [`answer_leaks`].
        `scores` and `accuracy`: of each way of writing ROUGE-L and what `metrics.accuracy_by_position` finds.
        `muted`: in percent, how many of the titles of both become others when twins are muted, and what ROUGE-L these
        have with those.
    """
    model.eval()
    found = {**_read_true_words(model, tokenizer, pairs, batch_size), "pairs": len(pairs), "num_beams": num_beams}
    systems = [name for name in available_systems(model) if name != "lead"]
    titles = predict(model, tokenizer, pairs, systems, progress=progress, num_beams=num_beams, batch_size=batch_size)
    references = listed_references(pairs)
    found["scores"] = {
        name: TitleScore().compute(predictions=written, references=references) for name, written in titles.items()
    }
    found["accuracy"] = {name: accuracy_by_position(written, references) for name, written in titles.items()}
    if "joint" in titles:
        settings: dict[str, Any] = {"proposals": "l2r+r2l", "ranking": "own", "num_beams": num_beams}
        sources = [text or "" for text in pairs["source"]]
        muted = [
            listed[0].text
            for listed in write_titles(model, tokenizer, sources, batch_size, progress=progress, **settings)
        ]
        others = [one != other for one, other in zip(titles["both"], muted)]
        common = pair_scores(muted, titles["both"])["rougeL"]
        found["muted"] = {"changed": 100 * sum(others) / len(others), "rougeL": sum(common) / len(common)}
    return found


def _read_true_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Dataset, batch_size: int
) -> dict[str, Any]:
    limits = (tokenizer.model_max_length, model.generation_config.max_length or 64)
    limits = (min(limits[0], 10_000), limits[1])
    encoder = PairEncoder(
        tokenizer, *limits, model.config.use_copy, model.source_tokenizer, vocab_size=model.config.vocab_size
    )
    from datasets import Dataset

    # Of several references decoders are asked about the first.
    targets = [references[0] for references in listed_references(pairs)]
    encoded, _ = encoder.encode(Dataset.from_dict({"source": list(pairs["source"]), "target": targets}))
    rows = encoded.remove_columns("length").to_list()
    collate = TitleCollator(tokenizer, padding=True, label_pad_token_id=IGNORE_INDEX)
    likely: dict[tuple[str, str], list[torch.Tensor]] = {}
    leaks: dict[str, list[torch.Tensor]] = {}
    exists: list[torch.Tensor] = []
    for start in range(0, len(rows), batch_size):
        batch = {name: x.to(model.device) for name, x in collate(rows[start : start + batch_size]).items()}
        exists.append(_packed(batch["labels"]) != IGNORE_INDEX)
        for partner in PARTNERS:
            for name, values in twin_log_probs(model, batch, partner).items():
                likely.setdefault((name, partner), []).append(values)
        for name, values in answer_leaks(model, batch).items():
            leaks.setdefault(name, []).append(values)
    # The end is no word that a twin could show.
    is_word = [there & (there.flip(1).cumsum(1).flip(1) > 1) for there in exists]
    log_probs: dict[str, dict[str, Any]] = {}
    for (name, partner), batches in likely.items():
        log_probs.setdefault(name, {})[partner] = _account(batches, exists)
    return {"log_probs": log_probs, "leak": {name: _account(batches, is_word) for name, batches in leaks.items()}}


def _account(values: list[torch.Tensor], exists: list[torch.Tensor]) -> dict[str, Any]:
    number = sum(int(there.sum()) for there in exists)
    return {"mean": sum(float(some.sum()) for some in values) / max(number, 1), "by_part": by_part(values, exists)}


def describe(found: Mapping[str, Any]) -> str:
    """A diagnosis in words and small tables."""
    lines = ["Mean log-probability of a true word (nats; nearer to 0 is surer), beside a twin that shows"]
    lines.append(f"{'':16}{'nothing':>10}{'true words':>12}{'its own':>10}")
    for name, values in found["log_probs"].items():
        figures = [values[partner]["mean"] for partner in PARTNERS]
        lines.append(f"{_NAMES[name]:16}{figures[0]:10.3f}{figures[1]:12.3f}{figures[2]:10.3f}")
    lines.append("Only the last column is what a search sees: true words hold the answer.\n")
    lines.append("What of this the twin's true words give away, from the first tenth of a title to the last (nats)")
    for name, values in found["leak"].items():
        lines.append(f"{_NAMES[name]:16}" + "".join(f"{_number(x):>7}" for x in values["by_part"]))
    lines.append("0.00 everywhere: nothing leaks.\n")
    lines.append(f"{'':10}{'ROUGE-L':>9}{'first 4':>9}{'last 4':>9}")
    for name, scores in found["scores"].items():
        lines.append(f"{name:10}{scores['rougeL']:9.2f}{scores['first4']:9.2f}{scores['last4']:9.2f}")
    if "muted" in found:
        muted = found["muted"]
        lines.append(
            f"With the twins muted {muted['changed']:.1f} % of the titles of 'both' become others; they have ROUGE-L "
            f"{muted['rougeL']:.1f} with those."
        )
    return "\n".join(lines)


_NAMES = {"l2r": "left to right", "r2l": "right to left"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def save_diagnosis(folder: str | Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> Sequence[Path]:
    """Writes `diagnosis.json` and its picture, `diagnosis.png`, into a folder, made if it is not there."""
    from .plots import as_png, diagnosis_figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "diagnosis.json", folder / "diagnosis.png"
    table.write_text(json.dumps({**about, **found}, indent=2) + "\n", encoding="utf-8")
    as_png(lambda theme: diagnosis_figure(theme, found), picture)
    return table, picture


__all__ = [
    "PARTNERS",
    "PARTS",
    "answer_leaks",
    "by_part",
    "describe",
    "diagnose",
    "save_diagnosis",
    "twin_log_probs",
]
