"""A teacher's titles as pairs for a student: the same as `generate` writes, through kills, from any seq2seq model."""

import json
import random

import pytest
import torch
from conftest import tiny_model
from test_training import RUN, TINY
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from bidir_seq2seq.commands import distil, generate
from bidir_seq2seq.loading import load_model_and_tokenizer
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

STUDENT = {**TINY, **RUN, "max_steps": 2, "save_steps": 2, "decoder_directions": "l2r", "report": False}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1, model_max_length=20)
    torch.manual_seed(0)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.update(max_length=8, min_length=4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bart")
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1, model_max_length=10**9)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    torch.manual_seed(0)
    start = {"decoder_start_token_id": tokenizer.bos_token_id, "forced_eos_token_id": None}
    model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids, **start))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    model.generation_config.update(max_length=8, min_length=4, num_beams=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 15))) for _ in range(90)]
    return [{"document": text, "summary": text[:3]} for text in texts]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def kill_at_title(number, run, monkeypatch):
    """Runs something, and ends it where so many titles have been written."""
    written = []

    def dies(*args, original=distil.as_lines):
        written.append(1)
        if len(written) == number:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(distil, "as_lines", dies)
        with pytest.raises(KeyboardInterrupt):
            run()


@pytest.fixture
def run(teacher, pairs, tmp_path):
    """Runs the command on the pairs; returns what it printed of its folder: titles, and pairs as tuples."""
    files = {"train_file": write_rows(tmp_path / "train.jsonl", pairs)}
    files["validation_file"] = write_rows(tmp_path / "validation.jsonl", pairs[:4])

    def distilled(output_dir="student", **changes):
        settings = {**STUDENT, **files, "teacher_name_or_path": teacher, "teacher_batch_size": 1, **changes}
        settings |= {"output_dir": str(tmp_path / output_dir), "teacher_device": "cpu"}
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        distil.main([str(tmp_path / "settings.json")])
        folder = tmp_path / output_dir
        rows = (folder / distil.PAIRS).read_text(encoding="utf-8").split("\n")[:-1]
        titles = (folder / distil.TITLES).read_text(encoding="utf-8").split("\n")[:-1]
        return titles, [tuple(json.loads(row).values()) for row in rows]

    return distilled


@pytest.mark.e2e
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"proposals": "l2r+r2l+both", "ranking": "consensus", "num_beams": 3},
        {"proposals": "l2r+r2l+drawn", "ranking": {"consensus": 1, "l2r": 0.1}, "num_beams": 3},
    ],
)
def test_pseudo_titles_are_what_generate_writes(run, teacher, pairs, tmp_path, settings):
    titles, learned = run(**settings)
    flags = [
        part
        for name, value in settings.items()
        for part in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]
    path = tmp_path / "titles.txt"
    place = ["--input_file", str(tmp_path / "train.jsonl"), "--output_file", str(path), "--device", "cpu"]
    generate.main(["--model_name_or_path", teacher, *place, *flags])
    assert (tmp_path / "student" / distil.TITLES).read_bytes() == path.read_bytes()
    assert len(set(titles)) > 10
    gold = [(row["document"], row["summary"]) for row in pairs]
    assert learned == gold + [(row["document"], title) for row, title in zip(pairs, titles)]


@pytest.mark.e2e
def test_the_student_loads_and_writes(run, tmp_path):
    run(pairs="pseudo")
    model, tokenizer = load_model_and_tokenizer(tmp_path / "student", device="cpu")
    assert model.config.decoder_directions == "l2r"
    assert len(write_titles(model, tokenizer, ["abc", "fed"])) == 2
    assert json.loads((tmp_path / "student" / "eval_results.json").read_text())["eval_loss"] > 0
    run("twins", pairs="pseudo", decoder_directions="both")
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "twins").config.decoder_directions == "both"


@pytest.mark.e2e
def test_it_goes_on_after_a_kill_to_the_same_pairs(run, tmp_path, monkeypatch):
    titles, learned = run("whole")
    kill_at_title(50, lambda: run("killed"), monkeypatch)
    partial = tmp_path / "killed" / f"{distil.TITLES}.partial"
    assert partial.read_text().count("\n") == 32
    with open(partial, "ab") as file:
        file.write(b"abc")
    assert run("killed") == (titles, learned)
    # What is finished is not written again.
    monkeypatch.setattr(distil, "load_model_and_tokenizer", None)
    assert run("killed") == (titles, learned)
    with pytest.raises(ValueError, match="begun with other settings: num_beams was None and is 2.*or delete it"):
        run("killed", num_beams=2)


def test_unlabelled_documents_are_added_and_empty_titles_left_out(run, pairs, tmp_path, caplog):
    more = ["hgf", "", "abcabc"]
    (tmp_path / "more.txt").write_text("".join(f"{text}\n" for text in more))
    titles, learned = run(unlabelled_file=[str(tmp_path / "more.txt")], max_train_samples=5)
    assert len(titles) == 8 and [not title for title in titles] == [False] * 6 + [True, False]
    sources = [row["document"] for row in pairs[:5]] + ["hgf", "abcabc"]
    assert learned[5:] == list(zip(sources, filter(None, titles)))
    alone, learned = run("pseudo", unlabelled_file=[str(tmp_path / "more.txt")], max_train_samples=5, pairs="pseudo")
    assert alone == titles and learned == list(zip(sources, filter(None, titles)))
    assert "5 given pairs, 7 with pseudo-titles; 1 pseudo-titles are empty and left out" in caplog.text


def test_columns_may_be_named(run, pairs, tmp_path):
    def rows(number):
        return [{"n": 1, "pair": {"a": row["summary"], "b": row["document"]}} for row in pairs[:number]]

    files = {"train_file": write_rows(tmp_path / "a.jsonl", rows(9))}
    files["validation_file"] = write_rows(tmp_path / "b.jsonl", rows(3))
    _, learned = run(source_column="pair.b", target_column="pair.a", **files)
    assert learned[:9] == [(row["document"], row["summary"]) for row in pairs[:9]]


def test_another_seq2seq_model_may_teach(run, bart, pairs):
    pairs = [row["document"] for row in pairs]
    titles, _ = run(teacher_name_or_path=bart, source_prefix="a" * 12)
    model, tokenizer = load_model_and_tokenizer(bart, device="cpu")
    assert isinstance(model, BartForConditionalGeneration)
    expected = write_titles(model, tokenizer, ["a" * 12 + text for text in pairs], max_source_length=24)
    assert titles == [" ".join(title[0].text.split()) for title in expected]
    with pytest.raises(ValueError, match="ranking='joint' is for a teacher of this package, .* BartFor"):
        run("other", teacher_name_or_path=bart, ranking="joint")


def test_a_teacher_that_writes_nothing_is_refused(run, monkeypatch):
    monkeypatch.setattr(distil, "as_lines", lambda titles, number: [""])
    with pytest.raises(ValueError, match="all 90 pseudo-titles in .* are empty"):
        run()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="every process of torchrun would write all titles"):
        distil.distil(None, None, None, None)
