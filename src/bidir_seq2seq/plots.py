"""Figures of a run: learning curves, accuracy by position, lengths, scores and what the prior does.

Each `..._figure` draws one figure in a theme's colours; `as_svg` and `as_png` turn it into what a page or a model
card embeds. No screen and no state of pyplot is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .extras import extra

with extra("plots"):
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points of a line that are drawn; more would only make a page larger.
MAX_POINTS = 400
SIZE = (4.7, 3.1)

# Colours that differ for colour-blind readers, too; systems also differ by their dashes and marks.
_LIGHT = {
    "lead": "#7d7d7d",
    "l2r": "#0b62a8",
    "r2l": "#c1550a",
    "both": "#087f5b",
    "joint": "#8a3ea8",
    "consensus": "#b3245e",
}
_DARK = {
    "lead": "#a3a3a3",
    "l2r": "#6cb6f5",
    "r2l": "#f5a45d",
    "both": "#4fd1a5",
    "joint": "#d59bee",
    "consensus": "#f58fb5",
}
_DASHES = {"lead": ":", "l2r": "-", "r2l": "-", "both": "--", "joint": "-.", "consensus": "-"}
_MARKS = {"lead": "x", "l2r": ">", "r2l": "<", "both": "o", "joint": "D", "consensus": "*"}
# Names that figures show instead of a system's.
LABELS = {"lead": "lead", "l2r": "left to right", "r2l": "right to left", "both": "both", "joint": "joint"}


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        ink: Of text.
        muted: Of axes and of what is second in rank.
        grid: Of grid lines.
        background: Behind the figure; "none" shows the page's own.
        systems: By a system's name.
        runs: Of the first run, the second one, and so on.
    """

    ink: str
    muted: str
    grid: str
    background: str = "none"
    systems: Mapping[str, str] = field(default_factory=dict)
    runs: Sequence[str] = ()

    def system(self, name: str) -> str:
        """The colour of a system; files that were scored have the ink's."""
        return self.systems.get(name, self.ink)

    def run(self, index: int) -> str:
        """The colour of a run by its place."""
        return self.runs[index % len(self.runs)]


LIGHT = Theme("#1f2328", "#59636e", "#dfe3e8", systems=_LIGHT, runs=tuple(_LIGHT[n] for n in ("l2r", "r2l", "both")))
DARK = Theme("#e6edf3", "#9aa4af", "#2c343e", systems=_DARK, runs=tuple(_DARK[n] for n in ("l2r", "r2l", "both")))
# Pictures stand on pages of any colour.
PAPER = Theme("#1f2328", "#59636e", "#dfe3e8", "#ffffff", _LIGHT, LIGHT.runs)


@dataclass(frozen=True)
class Curve:
    """What a run has logged of one quantity.

    Attributes:
        steps: Updates.
        minutes: Training time until then; empty if a run has not noted it.
        values: The quantity.
    """

    steps: list[float]
    minutes: list[float]
    values: list[float]

    @classmethod
    def from_log(cls, log_history: Sequence[Mapping], name: str) -> Curve:
        """Of a Trainer's log what it says of `name`, such as `"eval_loss"`; entries without a number are left out."""
        by_step: dict[int, Mapping] = {}
        for entry in log_history:
            if isinstance(entry.get(name), int | float) and "step" in entry:
                # The first of a step: once more at the end is validated the best model, which may be of another one.
                by_step.setdefault(entry["step"], entry)
        entries = list(by_step.values())
        timed = entries and all("elapsed_seconds" in entry for entry in entries)
        return cls(
            steps=[float(entry["step"]) for entry in entries],
            minutes=[entry["elapsed_seconds"] / 60 for entry in entries] if timed else [],
            values=[float(entry[name]) for entry in entries],
        )

    def against(self, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """Places on an axis, `"steps"` or `"minutes"`, and values; at most `MAX_POINTS`, each a mean of neighbours."""
        places, values = np.asarray(getattr(self, axis)), np.asarray(self.values)
        if len(places) != len(values):
            return np.empty(0), np.empty(0)
        groups = min(len(values), MAX_POINTS)
        if not groups:
            return places, values
        places, values = (np.array([part.mean() for part in np.array_split(x, groups)]) for x in (places, values))
        return places, values


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    installed = set(font_manager.get_font_names())
    chinese = [
        name for name in ("Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "SimHei") if name in installed
    ]
    settings = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", *chinese],
        "font.size": 10,
        # A dollar sign in somebody's name of a run starts no formula.
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "bidir_seq2seq",
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "figure.facecolor": theme.background,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
    }
    with matplotlib.rc_context(settings):
        yield


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _legend_above(axes: Axes, columns: int = 4) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=2.2)


def as_svg(draw: Callable[[Theme], Figure], theme: Theme) -> str:
    """A figure as SVG, with its text as text."""
    file = io.StringIO()
    with _style(theme):
        draw(theme).savefig(file, format="svg", facecolor=theme.background, metadata={"Date": None, "Creator": None})
    return file.getvalue()[file.getvalue().index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")


def as_png(draw: Callable[[Theme], Figure], path: str | Path, theme: Theme = PAPER) -> None:
    """Writes a figure as a picture, for a model card or a talk."""
    with _style(theme):
        draw(theme).savefig(path, format="png", dpi=160, facecolor=theme.background, metadata={"Software": None})


def loss_figure(theme: Theme, logs: Mapping[str, Sequence[Mapping]], axis: str = "steps") -> Figure:
    """Training and validation loss of runs, by name, against `"steps"` or `"minutes"`."""
    figure, axes = _axes(_AXES[axis], "loss (nats per token)")
    for index, (name, log) in enumerate(logs.items()):
        label = f"{name} " if len(logs) > 1 else ""
        places, values = Curve.from_log(log, "loss").against(axis)
        axes.plot(places, values, color=theme.run(index), alpha=0.65, linewidth=1.2, label=f"{label}training")
        places, values = Curve.from_log(log, "eval_loss").against(axis)
        axes.plot(places, values, "o-", color=theme.run(index), label=f"{label}validation")
    _legend_above(axes, 2)
    return figure


def rouge_figure(theme: Theme, logs: Mapping[str, Sequence[Mapping]], axis: str = "steps") -> Figure:
    """ROUGE-L in the validations of runs, by name, against `"steps"` or `"minutes"`."""
    figure, axes = _axes(_AXES[axis], "validation ROUGE-L (%)")
    for index, (name, log) in enumerate(logs.items()):
        places, values = Curve.from_log(log, "eval_rougeL").against(axis)
        axes.plot(places, values, "o-", color=theme.run(index), label=name)
    if len(logs) > 1:
        _legend_above(axes, 2)
    return figure


_AXES = {"steps": "updates", "minutes": "training time (minutes)"}


def position_figure(theme: Theme, accuracy: Mapping[str, Mapping[str, Sequence[tuple[float, int]]]]) -> Figure:
    """For each system how often the n-th token is right, from the start on the left and from the end on the right.

    Args:
        theme: Colours.
        accuracy: For each system what `metrics.accuracy_by_position` found.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    from_start, from_end = figure.subplots(1, 2, sharey=True)
    _draw_positions(theme, from_start, from_end, accuracy)
    handles, labels = from_start.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=2.2)
    return figure


def _draw_positions(
    theme: Theme, from_start: Axes, from_end: Axes, accuracy: Mapping[str, Mapping[str, Sequence[tuple[float, int]]]]
) -> None:
    for name, ends in accuracy.items():
        style: dict[str, Any] = {
            "color": theme.system(name),
            "linestyle": _DASHES.get(name, "-"),
            "marker": _MARKS.get(name, "."),
        }
        for axes, end in ((from_start, "start"), (from_end, "end")):
            shares = [share for share, _ in ends[end]]
            axes.plot(range(1, len(shares) + 1), shares, label=LABELS.get(name, name), **style)
    longest = max((len(ends[end]) for ends in accuracy.values() for end in ends), default=1)
    for axes, label in ((from_start, "token from the start"), (from_end, "token from the end")):
        axes.set_xlabel(label)
        axes.set_xlim(0.6, longest + 0.4)
        axes.set_xticks(range(1, longest + 1, 1 if longest <= 6 else 2))
    # The last token stands on the right, as in a title.
    from_end.invert_xaxis()
    from_start.set_ylabel("in its place (%)")
    from_start.set_ylim(bottom=0)


def diagnosis_figure(theme: Theme, found: Mapping[str, Any]) -> Figure:
    """What twins do for each other, as `diagnosis.diagnose` has found it: likelihood, leak, and both ends."""
    figure = Figure(figsize=(2 * SIZE[0], 2.1 * SIZE[1]), layout="constrained")
    grid = figure.subplots(2, 2)
    (likely, leak), (from_start, from_end) = grid
    for name, values in found["log_probs"].items():
        for partner, (dashes, said) in _SHOWN.items():
            parts = _parts(values[partner]["by_part"])
            label = f"{LABELS[name]}, twin shows {said}"
            likely.plot(*parts, color=theme.system(name), linestyle=dashes, label=label)
    likely.set_title("How sure a decoder is of each true word", loc="left", fontsize=10)
    likely.set_ylabel("log-probability (nats)")
    for name, values in found["leak"].items():
        parts = _parts(values["by_part"])
        leak.plot(*parts, color=theme.system(name), marker=_MARKS[name], label=LABELS[name])
    leak.set_title("The leak: what it reads off the twin's true words", loc="left", fontsize=10)
    leak.set_ylabel("nats of the answer")
    leak.legend(loc="upper left")
    for axes in (likely, leak):
        axes.set_xlabel("share of the title that is written (%)")
    _draw_positions(theme, from_start, from_end, found["accuracy"])
    from_start.set_title("How often each way of writing is right", loc="left", fontsize=10)
    from_start.legend(loc="upper right")
    likely.legend(loc="best", fontsize=7)
    return figure


_SHOWN = {"none": (":", "nothing"), "gold": ("--", "true words"), "own": ("-", "its own words")}


def _parts(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Places in percent and values of those parts of a title that there are."""
    there = [(100 * (index + 0.5) / len(values), value) for index, value in enumerate(values) if value is not None]
    return [place for place, _ in there], [value for _, value in there]


def length_figure(theme: Theme, lengths: Mapping[str, Sequence[int]]) -> Figure:
    """How long titles are in tokens: for `"reference"`, filled, and for each system a histogram."""
    figure, axes = _axes("tokens in a title", "titles (%)")
    longest = max((max(values, default=0) for values in lengths.values()), default=0)
    width = max(1, -(-longest // 40))
    bins = np.arange(0, longest + width + 1, width) - 0.5
    for name, values in lengths.items():
        share: dict[str, Any] = {"bins": bins, "weights": np.full(len(values), 100 / max(len(values), 1))}
        if name == "reference":
            axes.hist(values, color=theme.muted, alpha=0.35, label="references", **share)
            continue
        style: dict[str, Any] = {"color": theme.system(name), "linestyle": _DASHES.get(name, "-"), "linewidth": 1.5}
        axes.hist(values, histtype="step", label=LABELS.get(name, name), **style, **share)
    axes.grid(visible=False, axis="x")
    _legend_above(axes, 3)
    return figure


def score_figure(theme: Theme, runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Figure:
    """ROUGE-L of each run's systems with the 95 % intervals, one a line."""
    rows = [(run, name, scores) for run, systems in runs.items() for name, scores in systems.items()]
    figure, axes = _axes("ROUGE-L (%) with its 95 % interval", "")
    figure.set_figheight(max(1.4, 0.7 + 0.28 * len(rows)))
    for place, (_, name, scores) in enumerate(rows):
        value = scores["rougeL"]
        low, high = scores.get("rougeL_interval_low", value), scores.get("rougeL_interval_high", value)
        axes.plot([low, high], [place, place], color=theme.system(name), linewidth=2.4, solid_capstyle="round")
        axes.plot([value], [place], marker=_MARKS.get(name, "."), color=theme.system(name), markersize=7)
    labels = [f"{run}  {LABELS.get(name, name)}" if len(runs) > 1 else LABELS.get(name, name) for run, name, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    return figure


def prior_figure(theme: Theme, masses: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Probability on source words at each token of a title, for each direction `"with"` and `"without"` the prior."""
    figure, axes = _axes("token in the order it is written", "probability on source words (%)")
    for direction, lines in masses.items():
        for kind, (dashes, said) in _KINDS.items():
            if kind not in lines:
                continue
            values = [100 * value for value in lines[kind]]
            style: dict[str, Any] = {
                "color": theme.system(direction),
                "marker": _MARKS.get(direction, "."),
                "linestyle": dashes,
            }
            axes.plot(range(1, len(values) + 1), values, label=f"{LABELS[direction]}, {said}", **style)
    axes.set_ylim(0, 100)
    _legend_above(axes, 2)
    return figure


_KINDS = {"with": ("-", "as trained"), "without": (":", "no prior"), "without_copies": ("--", "no copies")}


def plot_training_curve(log_history: list[dict], path: str | Path) -> None:
    """Draws validation loss and ROUGE-L against training time in minutes; needs two validations or more."""
    loss, rouge = (Curve.from_log(log_history, name) for name in ("eval_loss", "eval_rougeL"))
    if len(loss.minutes) < 2:
        return

    def draw(theme: Theme) -> Figure:
        figure, axes = _axes(_AXES["minutes"], "validation loss (nats per token)")
        axes.plot(*loss.against("minutes"), "o-", color=theme.system("l2r"))
        axes.yaxis.label.set_color(theme.system("l2r"))
        if len(rouge.minutes) == len(loss.minutes):
            right = axes.twinx()
            right.plot(*rouge.against("minutes"), "s-", color=theme.system("r2l"))
            right.set_ylabel("validation ROUGE-L (%)", color=theme.system("r2l"))
            right.grid(visible=False)
        return figure

    as_png(draw, path)


__all__ = [
    "DARK",
    "LABELS",
    "LIGHT",
    "PAPER",
    "Curve",
    "Theme",
    "as_png",
    "as_svg",
    "diagnosis_figure",
    "length_figure",
    "loss_figure",
    "plot_training_curve",
    "position_figure",
    "prior_figure",
    "rouge_figure",
    "score_figure",
]
