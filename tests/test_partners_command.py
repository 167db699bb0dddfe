"""What decoders are to read of each other: written by models that have not learned it, beside its own pair."""

import json
import random

import pytest
from conftest import tiny_model
from test_distil import kill_at_title, write_rows
from test_training import RUN, TINY
from transformers import AutoModelForSeq2SeqLM

from bidir_seq2seq.commands import distil, partners, train
from bidir_seq2seq.data import PARTNER_COLUMNS, PairEncoder, load_pairs
from bidir_seq2seq.loading import load_model_and_tokenizer
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer
from bidir_seq2seq.unknown_words import TitleCollator

SETTINGS = {**TINY, **RUN, "max_steps": 2, "save_steps": 2, "report": False, "min_frequency": 1}


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def pairs() -> list[dict]:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 15))) for _ in range(41)]
    # A row may have no text on a side.
    return [{"text": text, "title": text[:3]} for text in texts] + [{"text": "", "title": "a"}]


@pytest.fixture
def run(pairs, tmp_path):
    """Runs the command on the pairs in a folder; returns its rows."""
    files = {"train_file": write_rows(tmp_path / "train.jsonl", pairs)}
    files["validation_file"] = write_rows(tmp_path / "validation.jsonl", pairs[:4])

    def written(output_dir="first", **changes):
        settings = {**SETTINGS, **files, "batch_size": 2, **changes, "output_dir": str(tmp_path / output_dir)}
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        partners.main([str(tmp_path / "settings.json")])
        return read_rows(tmp_path / output_dir / distil.PAIRS)

    return written


@pytest.mark.e2e
@pytest.mark.parametrize("num_folds", [1, 3])
def test_each_title_is_by_a_model_that_has_not_learned_it(run, pairs, tmp_path, num_folds):
    rows = run(num_folds=num_folds, num_beams=2)
    assert [(row["source"], row["target"]) for row in rows] == [(row["text"], row["title"]) for row in pairs]
    for fold in range(num_folds):
        folder = tmp_path / "first" / f"fold-{fold}"
        learned = [row["source"] for row in read_rows(folder / distil.PAIRS)]
        own = [row["source"] for row in rows[fold::num_folds]]
        others = [row["text"] for number, row in enumerate(pairs) if number % num_folds != fold]
        assert learned == (others if num_folds > 1 else own)
        model, tokenizer = load_model_and_tokenizer(folder, device="cpu")
        for column in PARTNER_COLUMNS:
            direction = column.removesuffix("_title")
            found = write_titles(model, tokenizer, own, batch_size=2, decoding_direction=direction, num_beams=2)
            assert [row[column] for row in rows[fold::num_folds]] == [" ".join(x[0].text.split()) for x in found]
    assert len({row["l2r_title"] for row in rows}) > 3


@pytest.mark.e2e
def test_it_goes_on_after_a_kill_to_the_same_rows(run, tmp_path, monkeypatch):
    rows = run("whole")
    kill_at_title(65, lambda: run("killed"), monkeypatch)
    assert run("killed") == rows
    # What is finished is not written again.
    monkeypatch.setattr(distil, "load_model_and_tokenizer", None)
    assert run("killed") == rows


@pytest.mark.e2e
def test_processes_write_the_same(run):
    assert run("one") == run("two", num_processes=2)


@pytest.mark.e2e
def test_a_second_stage_reads_what_was_written(run, tmp_path):
    run()
    changes = {"twin_partner": "written", "model_name_or_path": str(tmp_path / "first" / "fold-0")}
    settings = {**RUN, "max_steps": 2, "save_steps": 2, "report": False, **changes}
    settings |= {"train_file": str(tmp_path / "first" / distil.PAIRS), "output_dir": str(tmp_path / "second")}
    settings |= {"validation_file": str(tmp_path / "validation.jsonl")}
    (tmp_path / "second.json").write_text(json.dumps(settings))
    train.main([str(tmp_path / "second.json")])
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "second")
    assert model.config.twin_partner == "written"
    model, tokenizer = load_model_and_tokenizer(tmp_path / "second", device="cpu")
    assert len(write_titles(model, tokenizer, ["abc", "fed"], num_beams=2, proposals="l2r+r2l+both")) == 2
    # Pairs that nobody has written for are refused before anything is trained.
    for change, message in (
        ({"train_file": str(tmp_path / "train.jsonl")}, "no column 'l2r_title'.*bidir-seq2seq partners"),
        ({"streaming": True}, "twin_partner='written' with streaming=True"),
    ):
        (tmp_path / "second.json").write_text(
            json.dumps({**settings, **change, "output_dir": str(tmp_path / "third")})
        )
        with pytest.raises(ValueError, match=message):
            train.main([str(tmp_path / "second.json")])


def test_models_on_the_way_are_nobody_elses(run, monkeypatch, tmp_path, caplog):
    seen = []

    def stop(model_args, data_args, training_args):
        seen.append(training_args)
        raise KeyboardInterrupt

    monkeypatch.setattr(partners, "train", stop)
    tiny_model(vocab_size=12).save_pretrained(tmp_path / "before")
    with pytest.raises(KeyboardInterrupt):
        run(push_to_hub=True, hub_model_id="me/mine", model_name_or_path=str(tmp_path / "before"))
    assert not seen[0].push_to_hub and "if that has learned these pairs" in caplog.text


def test_one_direction_writes_no_partners(run):
    with pytest.raises(ValueError, match="decoder_directions='l2r': partners are titles from both sides"):
        run(decoder_directions="l2r")
    with pytest.raises(ValueError, match="num_folds=22 for 42 pairs leaves too few"):
        run(num_folds=22)
    with pytest.raises(ValueError, match="num_folds=0 must be a whole number of at least 1"):
        run(num_folds=0)


def test_titles_keep_to_their_pairs_and_know_the_words_of_their_documents(tmp_path):
    rows = [
        {"text": "a zebra", "title": "zebra", "l2r_title": "a zebra", "r2l_title": None},
        {"text": "", "title": "b", "l2r_title": "b", "r2l_title": "b"},
        {"text": "b c", "title": "c", "l2r_title": "", "r2l_title": "yak c"},
    ]
    pairs = load_pairs({"train": write_rows(tmp_path / "train.jsonl", rows)})["train"]
    assert pairs.column_names == ["source", "target", *PARTNER_COLUMNS]
    tokenizer = build_char_tokenizer(["abc "], min_frequency=1, model_max_length=20)
    size, a, c = len(tokenizer), tokenizer.convert_tokens_to_ids("a"), tokenizer.convert_tokens_to_ids("c")
    encoded, _ = PairEncoder(tokenizer, 20, 4, extend=True, partners=True).encode(pairs)
    end, unk = tokenizer.eos_token_id, tokenizer.unk_token_id
    # "z" is the first word of its document that the vocabulary lacks, "y" is in none, and long titles are cut.
    assert encoded["labels"][0][0] == encoded["l2r_partner_ids"][0][2] == size
    assert encoded["l2r_partner_ids"][0][0] == a and encoded["l2r_partner_ids"][0][-1] == end
    assert encoded["l2r_partner_ids"][1] == [] and encoded["r2l_partner_ids"][0] == []
    assert encoded["r2l_partner_ids"][1][0] == unk and len(encoded["r2l_partner_ids"][1]) == 4
    model = tiny_model(vocab_size=size, use_copy=True, twin_partner="written").train()
    batch = TitleCollator(tokenizer, model=model)([encoded[0], encoded[1]])
    assert batch["l2r_partner_ids"].tolist()[1] == [-100] * 4
    batch.pop("length")
    batch.pop("decoder_input_ids", None)
    assert model(**batch).loss.isfinite()
    without = PairEncoder(tokenizer, 20, 4, extend=True).encode(pairs)[0]
    assert not set(without.column_names) & {"l2r_partner_ids", "r2l_partner_ids"}
    assert without["labels"][:] == encoded["labels"][:] and c in without["labels"][1]
