"""Scoring a model's directions, and an untrained baseline, on held-out pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data import check_column, check_text, choose_columns, load_pairs
from .extras import extra
from .metrics import (
    References,
    TitleScore,
    Tokenization,
    bootstrap_interval,
    lead_baseline,
    pair_scores,
    paired_bootstrap,
    pronunciation_scores,
    signatures,
)
from .proposals_bidir_seq2seq import searches_of
from .tables import cell, open_table
from .titles import Title, write_titles

with extra("train"):
    from accelerate import PartialState
    from accelerate.utils import gather_object

if TYPE_CHECKING:
    from datasets import Dataset

# What can be scored, and how `generate` is told to do it. "lead" copies the opening of the document.
SYSTEMS: dict[str, dict[str, Any]] = {
    "lead": {},
    "l2r": {"decoding_direction": "l2r"},
    "r2l": {"decoding_direction": "r2l"},
    "both": {"decoding_direction": "both", "joint_rescoring": False},
    "joint": {"decoding_direction": "both", "joint_rescoring": True},
    # Takes longer than all others together, and is run only when it is asked for.
    "consensus": {"decoding_direction": "both", "proposals": "l2r+r2l+drawn+spliced", "ranking": "consensus"},
    # As the model's own settings say, where `rank_tuning` has chosen weights.
    "tuned": {},
}
TITLE_METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "first4", "last4")
PRONUNCIATION_METRICS = ("wer", "per")

# What `save_scores` writes beside each system's titles.
SCORES_FILE, PAIRS_FILE, SETTINGS_FILE = "scores.json", "pairs.jsonl", "score_settings.json"


def load_test_pairs(
    names: str | Sequence[str],
    source_column: str | None = None,
    target_columns: Sequence[str] | None = None,
    encoding: str | None = None,
    split: str = "test",
) -> Dataset:
    """Loads held-out pairs; a title may have several references, in several columns or as a list in one.

    Args:
        names: A file of rows, or two of plain text, as for `data.load_pairs`.
        source_column: Column of the documents; default: by name, else the first one.
        target_columns: Columns of the references; default: by name, else the second one.
        encoding: Of files of text; default: found out.
        split: Which one, of a folder that holds several.

    Returns:
        A dataset with the columns `source` and `target`; where references are several, a target is a list of texts.

    Raises:
        ValueError: As `data.load_pairs`, and on a reference that is neither a text nor a list of them.
    """
    table = open_table(names, encoding, split)
    head = table.head()
    given = target_columns[0] if target_columns else None
    chosen, target = choose_columns(table.columns, source_column, given)
    target_columns = target_columns or [name for name in (target,) if name is not None]
    is_list = any(isinstance(cell(row, name), list) for row in head for name in target_columns)
    if not is_list and len(target_columns) < 2:
        return load_pairs({split: names}, source_column=source_column, target_column=given, encoding=encoding)[split]
    source_column = chosen
    for option, name in (("source_column", source_column), *(("target_column", name) for name in target_columns)):
        check_column(name, option, table.columns, table.name)
    check_text(head, source_column, "source_column", table.columns, table.name)
    sources, targets = [], []
    for row in table:
        if row.values is None:
            raise ValueError(str(row))
        source = cell(row.values, source_column)
        if not (isinstance(source, str) or source is None):
            raise ValueError(str(row.bad(f"column {source_column!r} does not hold text, but {source!r}")))
        cells = [cell(row.values, name) for name in target_columns]
        for name, value in zip(target_columns, cells):
            if not all(
                isinstance(text, str) or text is None for text in (value if isinstance(value, list) else [value])
            ):
                raise ValueError(str(row.bad(f"column {name!r} holds {value!r}, not a text nor a list of texts")))
        sources.append(source)
        # A cell may be empty where a pair has fewer references than others.
        targets.append([text for value in cells for text in _as_list(value) if text.strip()] or [""])
    from datasets import Dataset

    return Dataset.from_dict({"source": sources, "target": targets})


def _as_list(value: str | list[str] | None) -> list[str]:
    return [text or "" for text in value] if isinstance(value, list) else [value or ""]


def listed_references(pairs: Dataset) -> list[list[str]]:
    """The references of each pair of [`load_test_pairs`], one or several."""
    return [_as_list(target) or [""] for target in pairs["target"]]


def processes() -> PartialState:
    """The processes that `torchrun` or `accelerate launch` started, of which this is one; or this one alone."""
    # Without being told, accelerate sees no processes where there is neither a GPU nor its own launcher.
    return PartialState(cpu=not torch.accelerator.is_available())


def systems_of(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """All systems that a model can run, and how `generate` is told to."""
    direction = model.config.decoder_directions
    ranking = getattr(model.generation_config, "ranking", None)
    tuned = {"tuned": SYSTEMS["tuned"]} if isinstance(ranking, Mapping) else {}
    if direction != "both":
        # What the model has stored is for "tuned" alone.
        plain, compared = {"ranking": "own"}, {"ranking": "consensus", "proposals": f"{direction}+drawn+spliced"}
        return {"lead": {}, direction: SYSTEMS[direction] | plain, "consensus": compared, **tuned}
    missing = {"joint", "consensus"} if model.config.twin_dropout == 0 else set()
    if not tuned:
        missing.add("tuned")
    found = {name: settings for name, settings in SYSTEMS.items() if name not in missing}
    # What a tuned model has stored proposes for "tuned" alone.
    searches = {"proposals": searches_of(model.config, "both")}
    return found | {name: found[name] | searches for name in ("both", "joint") if name in found}


def available_systems(model: PreTrainedModel) -> list[str]:
    """The systems that are run of a model if nothing is said: `lead`, its direction(s), and `joint` if it has learned
    to write alone."""
    return [name for name in systems_of(model) if name != "consensus"]


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    systems: Sequence[str],
    tokenization: Tokenization = "auto",
    progress: bool = True,
    **generate_kwargs: Any,
) -> dict[str, list[str]]:
    """Writes the titles of `pairs` (columns `source`, `target`) with each system, as [`predict_titles`], as texts.

    Raises:
        ValueError: On a system that is unknown or that the model cannot run.
    """
    titles = predict_titles(model, tokenizer, pairs, systems, tokenization, progress, **generate_kwargs)
    return {name: [title.text for title in written] for name, written in titles.items()}


def predict_titles(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    systems: Sequence[str],
    tokenization: Tokenization = "auto",
    progress: bool = True,
    **generate_kwargs: Any,
) -> dict[str, list[Title]]:
    """Writes the titles of `pairs` with each system.

    Under `torchrun` or `accelerate launch` each process writes its share, every n-th pair, and all get all titles:
    none is left out or written twice, whatever the numbers.

    Args:
        model: A trained model; it stays where it is.
        tokenizer: Its tokenizer.
        pairs: With columns `source`, and `target` for the baseline's length.
        systems: Keys of `SYSTEMS`.
        tokenization: How the baseline counts tokens, as for `TitleScore.compute`.
        progress: Whether to show a progress bar, in the first process.
        **generate_kwargs: As for `titles.write_titles`.

    Returns:
        For each system the best title of each pair, in their order.

    Raises:
        ValueError: On a system that is unknown or that the model cannot run.
    """
    can_run = systems_of(model)
    for name in systems:
        if name not in can_run:
            raise ValueError(f"system {name!r} is not among what this model can run: {list(can_run)}")
    sources = [text or "" for text in pairs["source"]]
    state = processes()
    mine = range(state.process_index, len(sources), state.num_processes)
    documents = [sources[index] for index in mine]
    titles = {}
    for name in systems:
        if name == "lead":
            # As long as the references are on average: the baseline gets the length for free.
            lengths_of = [text for references in listed_references(pairs) for text in references]
            titles[name] = [Title(text) for text in lead_baseline(sources, lengths_of, tokenization=tokenization)]
            continue
        kwargs = {"progress": progress and state.is_main_process, **can_run[name], **generate_kwargs}
        written = write_titles(model, tokenizer, documents, **kwargs) if documents else []
        by_index = dict(gather_object([(index, found[0]) for index, found in zip(mine, written)]))
        titles[name] = [by_index[index] for index in range(len(sources))]
    return titles


def score(
    predictions: dict[str, list[str]],
    references: References,
    tokenization: Tokenization = "auto",
    metrics: Sequence[str] = TITLE_METRICS,
    by_pair: dict[str, dict[str, list[float]]] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores each system, in percent: ROUGE-1/2/L, BLEU and head/tail accuracy, and what else `metrics` name.

    Each system gets the 95 % interval of its ROUGE-L, and each after the first one also its `rougeL_difference` to the
    first one with its 95 % interval and p-value, by paired bootstrap over the test pairs (Koehn 2004).

    Args:
        predictions: Each system's titles, one a pair.
        references: One text, or one list of texts, a pair.
        tokenization: As for `TitleScore.compute`.
        metrics: Names of `TITLE_METRICS`, which are always computed, and `PRONUNCIATION_METRICS`.
        by_pair: What [`score_pairs`] has found for these predictions, if it has been called already.

    Raises:
        ValueError: On an unknown metric, or as `TitleScore.compute`.
    """
    for name in metrics:
        if name not in (*TITLE_METRICS, *PRONUNCIATION_METRICS):
            known = ", ".join((*TITLE_METRICS, *PRONUNCIATION_METRICS))
            raise ValueError(f"unknown metric {name!r}; choose among {known}")
    by_pair = by_pair or score_pairs(predictions, references, tokenization)
    results, first = {}, None
    for name, texts in predictions.items():
        scores = TitleScore().compute(predictions=texts, references=references, tokenization=tokenization)
        results[name] = scores or {}  # none on all but the first of several processes
        if set(metrics) & set(PRONUNCIATION_METRICS):
            errors = pronunciation_scores(texts, references, tokenization)
            results[name] |= {metric: errors[metric] for metric in metrics if metric in errors}
        rouge_l = by_pair[name]["rougeL"]
        low, high = bootstrap_interval(rouge_l)
        results[name] |= {"rougeL_interval_low": low, "rougeL_interval_high": high}
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


def score_pairs(
    predictions: dict[str, list[str]], references: References, tokenization: Tokenization = "auto"
) -> dict[str, dict[str, list[float]]]:
    """ROUGE of every pair, for each system; see `metrics.pair_scores`."""
    return {name: pair_scores(texts, references, tokenization) for name, texts in predictions.items()}


def save_scores(
    folder: str | Path,
    pairs: Dataset,
    titles: dict[str, list[Title]],
    results: dict[str, dict[str, float]],
    by_pair: dict[str, dict[str, list[float]]],
    tokenization: Tokenization = "auto",
    **settings: Any,
) -> None:
    """Leaves behind what a report, or another program, needs to know of a scoring.

    `scores.json` holds the results, NAME.txt each system's titles, one a line, `pairs.jsonl` a line for each pair with
    its `id` (its place, from 0), source, references and each system's title with the direction that wrote it and its
    scores, and `score_settings.json` how it was done.

    Args:
        folder: Where to; made if it is not there.
        pairs: As from [`load_test_pairs`].
        titles: As from [`predict_titles`].
        results: As from [`score`].
        by_pair: As from [`score_pairs`].
        tokenization: As it was given to them.
        **settings: What else to note, such as the model's name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    references = listed_references(pairs)
    (folder / SCORES_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, written in titles.items():
        lines = (" ".join(title.text.split()) for title in written)
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with open(folder / PAIRS_FILE, "w", encoding="utf-8") as file:
        for index, (source, listed) in enumerate(zip(pairs["source"], references)):
            row: dict[str, Any] = {"id": index, "source": source or "", "references": listed, "titles": {}}
            for name, written in titles.items():
                scores = {metric: round(values[index], 4) for metric, values in by_pair[name].items()}
                row["titles"][name] = {**asdict(written[index]), **scores}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    about = {"pairs": len(pairs), "tokenization": tokenization, "signatures": signatures(references, tokenization)}
    (folder / SETTINGS_FILE).write_text(json.dumps(about | settings, indent=2) + "\n", encoding="utf-8")


def format_table(results: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = TITLE_METRICS) -> str:
    """The scores as a plain-text table, one line a system; `metrics` are its columns."""
    first = next(iter(results))
    lines = [f"{'system':10}" + "".join(f"{column:>9}" for column in metrics) + f"   ROUGE-L against {first}"]
    for name, scores in results.items():
        line = f"{name:10}" + "".join(f"{scores[column]:9.2f}" for column in metrics)
        if "rougeL_difference" in scores:
            line += (
                f"   {scores['rougeL_difference']:+.2f} [{scores['rougeL_low']:+.2f}, {scores['rougeL_high']:+.2f}]"
                f" p={scores['rougeL_p_value']:.4f}"
            )
        lines.append(line)
    return "\n".join(lines)


__all__ = [
    "PAIRS_FILE",
    "PRONUNCIATION_METRICS",
    "SCORES_FILE",
    "SETTINGS_FILE",
    "SYSTEMS",
    "TITLE_METRICS",
    "available_systems",
    "format_table",
    "listed_references",
    "load_test_pairs",
    "predict",
    "predict_titles",
    "processes",
    "save_scores",
    "score",
    "score_pairs",
    "systems_of",
]
