"""The report of one run or several: a page that shows how they learned, what they write and where they look.

Everything comes from what runs and `score.py` leave behind. The page is one file without scripts and without anything
to fetch; texts of users are always escaped.
"""

from __future__ import annotations

import base64
import difflib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from . import plots
from .evaluation import PAIRS_FILE, SCORES_FILE, SETTINGS_FILE
from .extras import extra
from .loading import load_model_and_tokenizer
from .metrics import Tokenization, accuracy_by_position, paired_bootstrap, split_tokens
from .search_history import DIRECTIONS, Choice, SearchHistory, has_twin_search, record_search
from .source_words import source_word_mass
from .version import __version__

with extra("train"):
    import jinja2

logger = logging.get_logger(__name__)

TEMPLATE = "report_template.html"
# Of what a run has, its best system is shown where there is room for one.
PREFERENCE = ("consensus", "tuned", "joint", "both", "l2r", "r2l")
SCORE_COLUMNS = ("rouge1", "rouge2", "rougeL", "bleu", "first4", "last4", "wer", "per")
SCORE_LABELS = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "first4": "first 4",
    "last4": "last 4",
    "wer": "WER",
    "per": "PER",
}
NUM_EXAMPLES = 4
NUM_LOOKS = 2
# Longer documents are cut on the page; texts of any length may have been scored.
MAX_CHARACTERS = 400
# Columns of a heat map: the words that were looked at most.
MAX_COLUMNS = 28
NUM_PRIOR_PAIRS = 64


@dataclass
class Run:
    """What is known of one run.

    Attributes:
        name: What the page calls it.
        folder: Where it is.
        log: The Trainer's log.
        facts: What is said of it at the top, by name.
        settings: What it was begun with.
        scores: Of each system, as `evaluation.score` returned them.
        pairs: Of each test pair what `evaluation.save_scores` wrote.
        score_settings: How the scores were measured.
    """

    name: str
    folder: Path
    log: list[dict] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    pairs: list[dict] = field(default_factory=list)
    score_settings: dict = field(default_factory=dict)

    @property
    def main_system(self) -> str | None:
        """The system that is shown where there is room for one."""
        systems = list(self.pairs[0]["titles"]) if self.pairs else []
        return next((name for name in (*PREFERENCE, *systems) if name in systems), None)

    @property
    def tokenization(self) -> Tokenization:
        """`"char"` or `"word"`, as the scores counted."""
        asked = self.score_settings.get("tokenization", "auto")
        if asked != "auto":
            return asked
        tokens = self.score_settings.get("signatures", {}).get("tokens", "word")
        return "char" if tokens.startswith("character") else "word"


def write_report(
    run_dirs: Sequence[str | Path],
    output_dir: str | Path | None = None,
    scores_dirs: Sequence[str | Path] | None = None,
    names: Sequence[str] | None = None,
    look: bool = True,
) -> Path:
    """Writes `report.html` and its pictures.

    Args:
        run_dirs: Folders of runs; several are shown side by side.
        output_dir: Where to; default: `report` in the first run's folder.
        scores_dirs: For each run the folder that `score.py --output_dir` wrote; default: `scores` in or beside it.
        names: What to call the runs; default: their folders' names.
        look: Whether to load models, which is needed to show where they look and what the prior does.

    Returns:
        The page.

    Raises:
        ValueError: If a folder holds neither a run nor scores, or lists differ in length.
    """
    for option, values in (("scores_dirs", scores_dirs), ("names", names)):
        if values is not None and len(values) != len(run_dirs):
            raise ValueError(f"{option} has {len(values)} entries for {len(run_dirs)} runs: give one for each")
    runs = [
        read_run(folder, scores_dirs[i] if scores_dirs else None, names[i] if names else None)
        for i, folder in enumerate(run_dirs)
    ]
    _tell_apart(runs)
    output_dir = Path(output_dir) if output_dir else Path(run_dirs[0]) / "report"
    output_dir.mkdir(parents=True, exist_ok=True)
    looks = [_look(run) for run in runs] if look else [_Look() for _ in runs]
    figures = _figures(runs, looks)
    for name, figure in figures.items():
        plots.as_png(figure.draw, output_dir / f"{name}.png")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        figures={name: figure.embedded() for name, figure in figures.items()},
        captions=_CAPTIONS,
        score_columns=[name for name in SCORE_COLUMNS if any(name in s for run in runs for s in run.scores.values())],
        score_labels=SCORE_LABELS,
        system_labels=plots.LABELS,
        comparisons=_comparisons(runs),
        examples=_examples(runs),
        looks=looks,
        versions=f"bidir_seq2seq {__version__}, transformers {transformers.__version__}, "
        f"torch {version('torch')}, Python {platform.python_version()}",
    )
    path = output_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_run(folder: str | Path, scores_dir: str | Path | None = None, name: str | None = None) -> Run:
    """Reads what a run and its scoring left behind; what is not there is left out.

    Args:
        folder: The run's output folder.
        scores_dir: What `score.py --output_dir` wrote; default: `scores` in the folder or beside it.
        name: What to call it; default: the folder's name.

    Raises:
        ValueError: If there is neither a log nor a score, or `scores_dir` holds no scores.
    """
    folder = Path(folder)
    places = [Path(scores_dir)] if scores_dir else [folder / "scores", folder, folder.parent / "scores"]
    scores = next((place for place in places if (place / SCORES_FILE).exists()), None)
    if scores_dir and scores is None:
        raise ValueError(f"{scores_dir} has no {SCORES_FILE}: give the folder that score.py wrote with --output_dir")
    state = _read_json(folder / "trainer_state.json")
    if not state and scores is None:
        raise ValueError(
            f"{folder} holds neither a run's log (trainer_state.json) nor scores ({SCORES_FILE}): name the output_dir "
            "of train.py, or of score.py"
        )
    place = folder.resolve()
    # As a name, "model" says little.
    own = f"{place.parent.name}/{place.name}" if place.name in ("model", "output", "run") else place.name
    run = Run(name or own, folder, state.get("log_history", []))
    run.settings = _read_json(folder / "run_settings.json")
    if scores:
        run.scores = _read_json(scores / SCORES_FILE)
        run.score_settings = _read_json(scores / SETTINGS_FILE)
        if (scores / PAIRS_FILE).exists():
            with open(scores / PAIRS_FILE, encoding="utf-8") as file:
                run.pairs = [json.loads(line) for line in file]
    run.facts = _facts(run, state)
    return run


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _tell_apart(runs: list[Run]) -> None:
    """Names that are the same get the name of the folder around."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = f"{run.folder.resolve().parent.name}/{run.name}"
    names = [run.name for run in runs]
    for index, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({index + 1})"


def _facts(run: Run, state: dict) -> dict[str, str]:
    seconds = max((entry.get("elapsed_seconds", 0.0) for entry in run.log), default=0.0)
    config = _read_json(run.folder / "config.json")
    known = {
        "updates": f"{state['global_step']:,}" if state.get("global_step") else None,
        "training time": _duration(seconds) if seconds else None,
        "training pairs": _number(run.settings.get("number of training pairs")),
        "vocabulary": _number(config.get("vocab_size")),
        "decoders": {"both": "twins", "l2r": "left to right", "r2l": "right to left"}.get(
            str(config.get("decoder_directions"))
        ),
        "width": _number(config.get("hidden_size")),
        "best ROUGE-L": _best(state),
        "test pairs": _number(len(run.pairs) or run.score_settings.get("pairs")),
    }
    return {name: text for name, text in known.items() if text}


def _number(value: object) -> str | None:
    return f"{value:,}" if isinstance(value, int) and value else None


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _best(state: dict) -> str | None:
    metrics = [entry["eval_rougeL"] for entry in state.get("log_history", []) if entry.get("eval_rougeL") is not None]
    return f"{max(metrics):.2f}" if metrics else None


@dataclass(frozen=True)
class _Figure:
    """A figure of the page and what is said to who cannot see it."""

    draw: Callable
    alt: str

    def embedded(self) -> dict[str, str]:
        """Addresses that hold the figure itself, for light and for dark pages."""
        return {
            "alt": self.alt,
            **{
                name: _data_uri(plots.as_svg(self.draw, theme))
                for name, theme in (("light", plots.LIGHT), ("dark", plots.DARK))
            },
        }


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _figures(runs: list[Run], looks: list[_Look]) -> dict[str, _Figure]:
    """What there are data for, by the name of its picture."""
    figures = {}
    logs = {run.name: run.log for run in runs if run.log}

    def add(name: str, alt: str, draw: Callable, *args: Any) -> None:
        figures[name] = _Figure(lambda theme: draw(theme, *args), alt)

    timed = logs and all(plots.Curve.from_log(log, "loss").minutes for log in logs.values())
    for axis in ("steps", "minutes") if timed else ("steps",):
        where = {"steps": "updates", "minutes": "training time"}[axis]
        if any(plots.Curve.from_log(log, name).values for log in logs.values() for name in ("loss", "eval_loss")):
            add(f"loss_by_{axis}", f"Loss against {where}", plots.loss_figure, logs, axis)
        if any(len(plots.Curve.from_log(log, "eval_rougeL").values) > 1 for log in logs.values()):
            add(f"rouge_by_{axis}", f"Validation ROUGE-L against {where}", plots.rouge_figure, logs, axis)
    scored = {run.name: run.scores for run in runs if run.scores}
    if scored:
        add("scores", "ROUGE-L of every system with its interval", plots.score_figure, scored)
    for index, run in enumerate(runs):
        suffix = f"_{index + 1}" if len(runs) > 1 else ""
        if run.pairs:
            accuracy, lengths = _positions(run), _lengths(run)
            add(f"positions{suffix}", f"{run.name}: tokens in their place", plots.position_figure, accuracy)
            add(f"lengths{suffix}", f"{run.name}: lengths of titles", plots.length_figure, lengths)
        if looks[index].prior:
            alt = f"{run.name}: probability of source words, with and without the prior"
            add(f"prior{suffix}", alt, plots.prior_figure, looks[index].prior)
    return figures


def _positions(run: Run) -> dict:
    references = [pair["references"] for pair in run.pairs]
    return {
        name: accuracy_by_position([pair["titles"][name]["text"] for pair in run.pairs], references, run.tokenization)
        for name in run.pairs[0]["titles"]
        if name != "lead"
    }


def _lengths(run: Run) -> dict[str, list[int]]:
    def count(text: str) -> int:
        return sum(token is not None for _, token in split_tokens(text, run.tokenization))

    lengths = {"reference": [count(pair["references"][0]) for pair in run.pairs]}
    for name in run.pairs[0]["titles"]:
        if name != "lead":
            lengths[name] = [count(pair["titles"][name]["text"]) for pair in run.pairs]
    return lengths


def _comparisons(runs: list[Run]) -> list[dict]:
    """Each run after the first one against it, by its main system, where they were scored on the same pairs."""
    found, first = [], runs[0]
    for run in runs[1:]:
        if not run.pairs or not _same_pairs(first, run):
            continue
        scores = [[pair["titles"][r.main_system]["rougeL"] for pair in r.pairs] for r in (run, first)]
        found.append({"run": run, "first": first, "test": paired_bootstrap(scores[0], scores[1])})
    return found


def _same_pairs(a: Run, b: Run) -> bool:
    return [(p["source"], p["references"]) for p in a.pairs] == [(p["source"], p["references"]) for p in b.pairs]


def _examples(runs: list[Run]) -> list[dict]:
    """Groups of test pairs with every system's title: the best, the worst, and where two runs differ most."""
    run = next((run for run in runs if run.pairs), None)
    if run is None:
        return []
    beside = [other for other in runs if other.pairs and _same_pairs(run, other)]
    rouge = np.array([pair["titles"][run.main_system]["rougeL"] for pair in run.pairs])
    order = np.argsort(-rouge, kind="stable")
    middle = len(order) // 2
    groups = {"Best": order, "In the middle": order[max(middle - NUM_EXAMPLES // 2, 0) :], "Worst": order[::-1]}
    if len(beside) > 1:
        other = np.array([pair["titles"][beside[1].main_system]["rougeL"] for pair in beside[1].pairs])
        gain = rouge - other
        by_gain = np.argsort(gain, kind="stable")
        ahead = {
            f"Where {beside[1].name} is better": by_gain[gain[by_gain] < 0],
            f"Where {run.name} is better": by_gain[gain[by_gain] > 0][::-1],
        }
        groups = {heading: indices for heading, indices in ahead.items() if len(indices)} | groups
    return [
        {"heading": heading, "pairs": [_example(beside, index) for index in indices[:NUM_EXAMPLES]]}
        for heading, indices in groups.items()
    ]


def _example(runs: list[Run], index: int) -> dict:
    pair, tokenization = runs[0].pairs[index], runs[0].tokenization
    reference = split_tokens(pair["references"][0], tokenization)
    titles = []
    for run in runs:
        for name, title in run.pairs[index]["titles"].items():
            pieces = _marked(split_tokens(title["text"], tokenization), reference)
            label = f"{run.name}: {name}" if len(runs) > 1 else plots.LABELS.get(name, name)
            titles.append({"label": label, "pieces": pieces, "rougeL": title["rougeL"], "system": name})
    return {
        "id": pair["id"],
        "source": _cut(pair["source"]),
        "reference": pair["references"][0],
        "others": pair["references"][1:],
        "titles": titles,
    }


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"


def _marked(pieces: list[tuple[str, str | None]], reference: list[tuple[str, str | None]]) -> list[tuple[str, str]]:
    """A title in pieces, each `"same"` (as in the reference, in its order), `"other"` or `""` (not counted)."""
    tokens = [(index, token) for index, (_, token) in enumerate(pieces) if token is not None]
    right = [token for _, token in reference if token is not None]
    matcher = difflib.SequenceMatcher(None, [token for _, token in tokens], right, autojunk=False)
    same = {tokens[block.a + i][0] for block in matcher.get_matching_blocks() for i in range(block.size)}
    marked: list[tuple[str, str]] = []
    for index, (text, token) in enumerate(pieces):
        kind = "" if token is None else "same" if index in same else "other"
        # Neighbours of one kind become one piece, with the space between them.
        if marked and kind and len(marked) > 1 and marked[-1][1] == "" and marked[-2][1] == kind:
            marked[-2:] = [(marked[-2][0] + marked[-1][0] + text, kind)]
        elif marked and marked[-1][1] == kind:
            marked[-1] = (marked[-1][0] + text, kind)
        else:
            marked.append((text, kind))
    return marked


@dataclass
class _Look:
    """What a run's model showed: heat maps of some pairs, the prior's effect, and why there is nothing of it."""

    maps: list[dict] = field(default_factory=list)
    prior: dict = field(default_factory=dict)
    note: str = ""


def _look(run: Run) -> _Look:
    if not run.pairs:
        return _Look(note="Score the run (score.py --output_dir) to see where its model looks.")
    if not (run.folder / "config.json").exists():
        return _Look(note="There is no model in the run's folder.")
    model, tokenizer = load_model_and_tokenizer(run.folder)
    look = _Look()
    some = [pair for pair in run.pairs if pair["source"].strip() and pair["references"][0].strip()]
    if getattr(model, "prior", None) is not None:
        spread = some[:: max(len(some) // NUM_PRIOR_PAIRS, 1)][:NUM_PRIOR_PAIRS]
        titles = [pair["references"][0] for pair in spread]
        look.prior = source_word_mass(model, tokenizer, [pair["source"] for pair in spread], titles)
    else:
        look.note = "The model has no prior over source words. "
    if not (has_twin_search(model.config) and model.config.use_attention):
        look.note += "The model has no twins that look at a document and at each other."
        return look
    look.maps = [found for pair in _telling(run, some) if (found := _heat_maps(model, tokenizer, pair))]
    return look


def _telling(run: Run, pairs: list[dict]) -> list[dict]:
    """Short documents whose titles are good: there is something to see in them."""
    by_rouge = sorted(pairs, key=lambda pair: -pair["titles"][run.main_system]["rougeL"])
    best = by_rouge[: max(len(by_rouge) // 4, NUM_LOOKS)]
    return sorted(best, key=lambda pair: len(pair["source"]))[len(best) // 3 :][:NUM_LOOKS]


def _heat_maps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: dict) -> dict | None:
    searched, title = record_search(model, tokenizer, pair["source"])
    maps = [_heat_map(searched, direction) for direction in DIRECTIONS]
    return {
        "id": pair["id"],
        "reference": pair["references"][0],
        "title": title,
        "maps": [m for m in maps if m["rows"]],
    }


def _heat_map(searched: SearchHistory, direction: str) -> dict:
    """One direction's best title: for each token, in writing order, its look at the source and at the partner."""
    other = DIRECTIONS[1 - DIRECTIONS.index(direction)]
    path = searched.best(direction)
    choices = [_at(searched, direction, place) for place in path]
    most: dict[int, float] = {}
    for choice in choices:
        for place, share in choice.source:
            most[place] = max(most.get(place, 0.0), share)
    columns = sorted(sorted(most, key=lambda place: -most[place])[:MAX_COLUMNS])
    rows = []
    for (step, _), choice in zip(path, choices):
        shares = dict(choice.source)
        partner = searched.path(other, step - 1, choice.partner) if step and choice.partner is not None else []
        looked = dict(choice.partner_tokens)
        rows.append(
            {
                "text": choice.text.strip() or "␣",
                "source": [shares.get(place, 0.0) for place in columns],
                "partner": [
                    (_at(searched, other, place).text.strip() or "␣", looked.get(place[0], 0.0)) for place in partner
                ],
            }
        )
    return {
        "direction": direction,
        "columns": [searched.source[place].strip() or "␣" for place in columns],
        "cut": len(most) > MAX_COLUMNS,
        "rows": rows,
    }


def _at(searched: SearchHistory, direction: str, place: tuple[int, int]) -> Choice:
    choice = searched.steps[direction][place[0]][place[1]]
    assert choice is not None, "a finished title's tokens were chosen"
    return choice


_CAPTIONS = {
    "loss": "Validation loss is of each direction alone. Training loss is with dropout and smoothed labels, and where "
    "decoders read their twin, with what it shows them: true words of the answer make it lower than an honest one.",
    "positions": "How often the n-th token is the reference's n-th, counted from the start (left) and from the end "
    "(right). A left-to-right writer is good at openings, a right-to-left writer at endings.",
    "prior": "While known titles are read: the probability that the next token is a word of the document, with the "
    "learned prior (and copies, if the model has them) as trained, and for the same weights without.",
}

__all__ = ["Run", "read_run", "write_report"]
