"""The report: what it shows of a run, that it is one safe file, and that large runs stay small."""

import json
import re
import shutil
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import sideways, tiny_model
from datasets import Dataset

from bidir_seq2seq import report
from bidir_seq2seq.commands.report import main
from bidir_seq2seq.evaluation import (
    available_systems,
    listed_references,
    predict_titles,
    save_scores,
    score,
    score_pairs,
)
from bidir_seq2seq.plots import LIGHT, Curve, as_svg, length_figure, loss_figure
from bidir_seq2seq.report import read_run, write_report
from bidir_seq2seq.source_words import source_word_mass
from bidir_seq2seq.tokenization import build_char_tokenizer

HOSTILE = "</td><script>alert(1)</script>"
PAIRS = Dataset.from_dict({"source": ["abcdef", "fedcba", HOSTILE, "abba"], "target": ["abc", "fed", "abd", "ab"]})


def log(updates: int, every: int = 1) -> list[dict]:
    entries = []
    for step in range(1, updates + 1):
        entries.append({"step": step, "loss": 5 / step, "elapsed_seconds": step / 10})
        if step % every == 0:
            entries.append({"step": step, "eval_loss": 4 / step, "eval_rougeL": 20.0, "elapsed_seconds": step / 10})
    return entries


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A scored run of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "<b>first"
    tokenizer = build_char_tokenizer(["abcdef"], min_frequency=1, model_max_length=20)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.update(max_length=6, num_beams=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 4, "log_history": log(4, 2)}))
    (folder / "run_settings.json").write_text(json.dumps({"number of training pairs": 1234, "note": HOSTILE}))
    titles = predict_titles(model, tokenizer, PAIRS, available_systems(model), "char", progress=False)
    texts = {name: [title.text for title in written] for name, written in titles.items()}
    by_pair = score_pairs(texts, listed_references(PAIRS), "char")
    results = score(texts, listed_references(PAIRS), "char", by_pair=by_pair)
    save_scores(folder / "scores", PAIRS, titles, results, by_pair, "char")
    return folder


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]

    def handle_data(self, data):
        self.text += data


def test_a_report_is_one_file_that_fetches_and_runs_nothing(run, tmp_path):
    path = write_report([run], tmp_path)
    page = Page(path)
    assert "script" not in page.tags and "b" not in page.tags
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in page.links)
    assert HOSTILE in page.text and "<b>first" in page.text and "1,234" in page.text
    for section in ("scores", "learning", "positions", "examples", "attention", "prior"):
        assert f'id="{section}"' in path.read_text(encoding="utf-8"), section
    pictures = {picture.stem for picture in tmp_path.glob("*.png")}
    assert pictures == {
        "scores", "loss_by_steps", "loss_by_minutes", "rouge_by_steps", "rouge_by_minutes", "positions", "lengths",
        "prior",
    }  # fmt: skip


@pytest.mark.e2e
def test_the_page_fits_its_screen_and_shows_every_figure(run, tmp_path, browser):
    page = browser.new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(write_report([run], tmp_path).as_uri())
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert sideways(page) == 0
        sizes = page.evaluate("Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))")
        assert len(sizes) == 8 and all(sizes)
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()


def test_twins_that_do_not_read_each_other_have_no_maps(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "twin_partner": "none"}))
    # The model's checksums are those of before.
    (tmp_path / "run" / "manifest.json").unlink(missing_ok=True)
    text = write_report([tmp_path / "run"]).read_text()
    assert 'id="attention"' not in text and 'id="prior"' in text and "no twins that look" in text


def test_the_figures_of_the_page_are_those_of_the_scores(run, tmp_path):
    page = Page(write_report([run], tmp_path, look=False))
    scores = json.loads((run / "scores" / "scores.json").read_text())
    for values in scores.values():
        for name in ("rouge1", "rougeL", "bleu", "last4"):
            assert f"{values[name]:.2f}" in page.text
    assert "character|case:lower" in page.text


def test_two_runs_stand_side_by_side(run, tmp_path):
    path = write_report([run, run], tmp_path, names=["one", "two"], look=False)
    text = Page(path).text
    assert "ROUGE-L +0.00 [+0.00, +0.00], p=1.0000" in re.sub(r"\s+", " ", text)
    assert {p.stem for p in tmp_path.glob("positions*")} == {"positions_1", "positions_2"}
    # They write the same.
    assert "is better" not in text


def test_pairs_stand_where_a_run_is_better_on_them(run):
    one, two = read_run(run, name="one"), read_run(run, name="two")
    two.pairs = deepcopy(two.pairs)
    rouge = [pair["titles"][two.main_system]["rougeL"] for pair in two.pairs]
    best, worst = rouge.index(max(rouge)), rouge.index(min(rouge))
    assert rouge[best] > rouge[worst]
    for index, value in ((best, 0.0), (worst, 100.0)):
        two.pairs[index]["titles"][two.main_system]["rougeL"] = value
    found = {group["heading"]: group["pairs"] for group in report._examples([one, two])}
    assert [len(found[f"Where {name} is better"]) for name in ("one", "two")] == [1, 1]


@pytest.mark.parametrize("longest", [1, 10, 40, 41, 42, 50, 80, 123, 200])
def test_every_title_is_in_the_histogram_of_lengths(longest):
    figure = length_figure(LIGHT, {"l2r": [5, 1, longest, longest]})
    edges = figure.axes[0].patches[0].get_xy()[:, 0]
    assert edges.min() < 1 and edges.max() > longest


def test_what_is_missing_is_left_out_or_named(run, tmp_path):
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="holds neither a run's log"):
        read_run(tmp_path / "new")
    with pytest.raises(ValueError, match="has no scores.json"):
        read_run(run, scores_dir=tmp_path)
    with pytest.raises(ValueError, match="names has 1 entries for 2 runs"):
        write_report([run, run], tmp_path, names=["one"])
    (tmp_path / "new" / "trainer_state.json").write_text(json.dumps({"log_history": log(3, 1)}))
    text = write_report([tmp_path / "new"]).read_text()
    assert 'id="learning"' in text and 'id="scores"' not in text


def test_the_command_says_where_the_page_is(run, tmp_path, capsys):
    main([str(run), "--output_dir", str(tmp_path), "--no_model"])
    printed = capsys.readouterr().out
    assert f"Report: {tmp_path / 'report.html'}" in printed and "python -m bidir_seq2seq.demo" in printed


@pytest.mark.e2e
def test_a_long_run_and_many_pairs_make_a_small_page(run, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log(100_000, 500)}))
    for name in ("scores.json", "score_settings.json"):
        (tmp_path / "scores" / name).write_text((run / "scores" / name).read_text())
    rows = (run / "scores" / "pairs.jsonl").read_text().splitlines()
    with open(tmp_path / "scores" / "pairs.jsonl", "w") as file:
        for index in range(10_000):
            row = json.loads(rows[index % len(rows)])
            file.write(json.dumps({**row, "id": index, "source": "word " * 400}) + "\n")
    assert write_report([tmp_path]).stat().st_size < 5e6


def test_a_long_curve_keeps_its_course():
    curve = Curve([float(x) for x in range(10_000)], [], [float(x) for x in range(10_000)])
    places, values = curve.against("steps")
    assert len(places) == 400 and values == pytest.approx(places) and values[0] < 20 and values[-1] > 9980
    assert all(len(x) == 0 for x in curve.against("minutes"))


def test_the_best_model_at_the_end_does_not_pass_for_the_last():
    entries = [{"step": step, "eval_rougeL": value} for step, value in ((600, 30.2), (1200, 35.7), (1800, 35.6))]
    curve = Curve.from_log([*entries, {"step": 1800, "eval_rougeL": 35.7}], "eval_rougeL")
    assert (curve.steps, curve.values) == ([600, 1200, 1800], [30.2, 35.7, 35.6])


def test_names_are_no_formulas_and_no_elements():
    svg = as_svg(lambda theme: loss_figure(theme, {"$a_1$ <b>": log(3), "b": log(3)}), LIGHT)
    assert "$a_1$ &lt;b&gt;" in svg and "<b>" not in svg


def test_the_prior_adds_to_source_words_what_its_weights_say():
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    mass = source_word_mass(model, tokenizer, ["abc", "", "def"], ["ab", "x", "fe"], num_positions=2)
    assert set(mass) == {"l2r", "r2l"}
    for lines in mass.values():
        assert all(a > b for a, b in zip(lines["with"], lines["without"])) and len(lines["with"]) == 2
    # Nor does the side on which titles are padded.
    titles = ["abcdefgh", "ab", "x"]
    right = source_word_mass(model, tokenizer, ["abc", "abd", "def"], titles)
    tokenizer.padding_side = "left"
    left = source_word_mass(model, tokenizer, ["abc", "abd", "def"], titles)
    for name in right:
        assert left[name] == {kind: pytest.approx(line) for kind, line in right[name].items()}
    # Without any bonus it makes no difference.
    model.prior.log_scale.data.fill_(-100)
    for lines in source_word_mass(model, tokenizer, ["abc"], ["ab"]).values():
        assert lines["with"] == pytest.approx(lines["without"])
    with pytest.raises(ValueError, match="has no prior"):
        source_word_mass(tiny_model(use_prior=False), tokenizer, ["a"], ["a"])
    assert set(
        source_word_mass(tiny_model(vocab_size=len(tokenizer), decoder_directions="r2l"), tokenizer, ["ab"], ["a"])
    ) == {"r2l"}
