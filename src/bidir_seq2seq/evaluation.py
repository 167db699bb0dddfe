"""Scoring a model's directions, and an untrained baseline, on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .metrics import TitleScore, Tokenization, lead_baseline, pair_scores, paired_bootstrap
from .titles import write_titles

if TYPE_CHECKING:
    from datasets import Dataset

# What can be scored, and how `generate` is told to do it. "lead" copies the opening of the document.
SYSTEMS: dict[str, dict[str, Any]] = {
    "lead": {},
    "l2r": {"decoding_direction": "l2r"},
    "r2l": {"decoding_direction": "r2l"},
    "both": {"decoding_direction": "both", "joint_rescoring": False},
    "joint": {"decoding_direction": "both", "joint_rescoring": True},
}


def available_systems(model: PreTrainedModel) -> list[str]:
    """The systems that a model can run: `lead`, its direction(s), and `joint` if it has learned to write alone."""
    if model.config.decoder_directions != "both":
        return ["lead", model.config.decoder_directions]
    return [name for name in SYSTEMS if name != "joint" or model.config.twin_dropout > 0]


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    systems: Sequence[str],
    tokenization: Tokenization = "auto",
    progress: bool = True,
    **generate_kwargs: Any,
) -> dict[str, list[str]]:
    """Writes the titles of `pairs` (columns `source`, `target`) with each system.

    Raises:
        ValueError: On a system that is unknown or that the model cannot run.
    """
    for name in systems:
        if name not in available_systems(model):
            raise ValueError(f"system {name!r} is not among what this model can run: {available_systems(model)}")
    sources, targets = ([text or "" for text in pairs[column]] for column in ("source", "target"))
    predictions = {}
    for name in systems:
        if name == "lead":
            # As long as the references are on average: the baseline gets the length for free.
            predictions[name] = lead_baseline(sources, targets, tokenization=tokenization)
        else:
            titles = write_titles(model, tokenizer, sources, progress=progress, **SYSTEMS[name], **generate_kwargs)
            predictions[name] = [candidates[0].text for candidates in titles]
    return predictions


def score(
    predictions: dict[str, list[str]], references: list[str], tokenization: Tokenization = "auto"
) -> dict[str, dict[str, float]]:
    """ROUGE-1/2/L, BLEU and head/tail accuracy of each system, in percent.

    Each system after the first also gets `rougeL_difference` to the first one with its 95 % interval and p-value, by
    paired bootstrap over the test pairs (Koehn 2004).
    """
    results, first = {}, None
    for name, texts in predictions.items():
        scores = TitleScore().compute(predictions=texts, references=references, tokenization=tokenization)
        results[name] = scores or {}  # none on all but the first of several processes
        rouge_l = pair_scores(texts, references, tokenization=tokenization)["rougeL"]
        if first is None:
            first = rouge_l
            continue
        test = paired_bootstrap(rouge_l, first)
        results[name] |= {
            "rougeL_difference": test.difference,
            "rougeL_low": test.low,
            "rougeL_high": test.high,
            "rougeL_p_value": test.p_value,
        }
    return results


def format_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a plain-text table, one line a system."""
    columns = ("rouge1", "rouge2", "rougeL", "bleu", "first4", "last4")
    first = next(iter(results))
    lines = [f"{'system':10}" + "".join(f"{column:>9}" for column in columns) + f"   ROUGE-L against {first}"]
    for name, scores in results.items():
        line = f"{name:10}" + "".join(f"{scores[column]:9.2f}" for column in columns)
        if "rougeL_difference" in scores:
            line += (
                f"   {scores['rougeL_difference']:+.2f} [{scores['rougeL_low']:+.2f}, {scores['rougeL_high']:+.2f}]"
                f" p={scores['rougeL_p_value']:.4f}"
            )
        lines.append(line)
    return "\n".join(lines)


__all__ = ["SYSTEMS", "available_systems", "format_table", "predict", "score"]
