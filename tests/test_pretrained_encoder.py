"""An encoder of transformers that reads pieces of its own tokenizer; decoders, prior and copies know our tokens."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from conftest import WAYS, tiny_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForSeq2SeqLM, pipeline

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.data import encode_pairs
from bidir_seq2seq.encoders_bidir_seq2seq import PIECE_INPUTS, pieces_of, places_of, readable
from bidir_seq2seq.hub import save_for_hub
from bidir_seq2seq.loading import load_model_and_tokenizer
from bidir_seq2seq.tokenization import build_bpe_tokenizer, build_char_tokenizer
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments, train
from bidir_seq2seq.unknown_words import TitleCollator

TEXTS = [
    "the cat sat on the mat",
    "a dog  barks at [SEP] the cat",
    "x",
    "the mat on which the cat sat quietly in the afternoon",
]
LIMIT = 32
SMALL = {
    "vocab_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 12,
    "intermediate_size": 16,
}
WITHOUT_POSITIONS = {"vocab_size": 60, "d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 2, "num_heads": 2}
ENCODER_DECODER = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (
    ("layers", 2), ("attention_heads", 2), ("ffn_dim", 16)
)}  # fmt: skip
IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS = {
    "Bert": {**SMALL, "max_position_embeddings": LIMIT},
    "XLMRoberta": {**SMALL, "max_position_embeddings": LIMIT + 2},
    "ModernBert": {**SMALL, "max_position_embeddings": LIMIT, **IDS},
    "T5": WITHOUT_POSITIONS,
    "Bart": {"vocab_size": 60, "d_model": 12, "max_position_embeddings": LIMIT, **ENCODER_DECODER},
}
every_kind = pytest.mark.parametrize("kind", CONFIGS)


def save_encoder(kind: str, folder) -> str:
    """A folder of transformers' own kind of model and tokenizer."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind])
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    build_bpe_tokenizer(TEXTS * 20, vocab_size=60, model_max_length=10**30).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tokenizer():
    return build_char_tokenizer(TEXTS, min_frequency=1)


@pytest.fixture
def make(tokenizer, tmp_path):
    def make(kind: str = "Bert", **overrides) -> BidirSeq2SeqForConditionalGeneration:
        config = tiny_config(vocab_size=len(tokenizer), **{"use_copy": True, **overrides})
        names = ("vocab_size", "embedding_size", "hidden_size", "num_attention_heads", "attention_head_size")
        settings = {name: getattr(config, name) for name in (*names, "use_copy", "dropout", "twin_dropout")}
        folder = save_encoder(kind, tmp_path / kind)
        model = BidirSeq2SeqForConditionalGeneration.from_pretrained_encoder(folder, **settings).eval()
        for name, parameter in model.named_parameters():
            if "pretrained.model" not in name:
                nn.init.normal_(parameter, 0, 0.6)
        return model

    return make


def write(model, inputs, **settings) -> dict[str, list]:
    settings = {"num_beams": 3, "max_new_tokens": 7, **settings}
    return {way: model.generate(**inputs, **{**settings, **WAYS[way]}).tolist() for way in WAYS}


@every_kind
def test_the_weights_are_those_of_the_encoder(kind, make, tmp_path):
    model = make(kind)
    theirs = load_file(tmp_path / kind / "model.safetensors")
    ours = model.get_encoder().pretrained.model.state_dict()
    # T5 keeps its embedding under another name.
    found = {name: theirs.get(f"encoder.{name}", theirs.get(name, theirs.get("shared.weight"))) for name in ours}
    assert all(torch.equal(ours[name], x) for name, x in found.items()) and len(ours) > 10
    assert not any("pooler" in name for name in ours)


@every_kind
def test_a_row_alone_is_the_row_in_a_batch_whatever_the_side_of_its_padding(kind, make, tokenizer):
    model = make(kind)
    batch = model.encode_sources(tokenizer, TEXTS)
    together = model.get_encoder()(**batch).last_hidden_state
    for row, text in enumerate(TEXTS):
        alone = model.get_encoder()(**model.encode_sources(tokenizer, [text])).last_hidden_state[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)
        assert not together[row, len(alone) :].any()
    lengths = batch["encoder_attention_mask"].sum(1).tolist()
    moved = {
        name: torch.stack([row.roll(len(row) - length) for row, length in zip(batch[name], lengths)])
        for name in PIECE_INPUTS[:2]
    }
    again = model.get_encoder()(**{**batch, **moved}).last_hidden_state
    torch.testing.assert_close(again, together, rtol=1e-4, atol=1e-5)


def test_each_token_has_the_state_of_the_piece_that_it_stands_in(make, tokenizer):
    model, text = make(), TEXTS[0]
    row = {name: ids[0].tolist() for name, ids in model.encode_sources(tokenizer, [text]).items()}
    pieces = model.source_tokenizer.encode(text)
    assert row["encoder_input_ids"] == pieces.ids
    for place, position in enumerate(row["encoder_positions"][:-1]):
        start, end = pieces.offsets[position]
        assert start <= place < end or text[place] == " "
    # Our end stands in their last piece.
    assert row["encoder_positions"][-1] == len(pieces.ids) - 1


def test_tokens_of_one_piece_are_told_apart(make, tokenizer):
    model = make()
    batch = model.encode_sources(tokenizer, [TEXTS[0]])
    first, second = (batch["encoder_positions"][0] == 0).nonzero()[:2, 0].tolist()
    states = model.get_encoder()(**batch).last_hidden_state[0]
    assert not torch.allclose(states[first], states[second], atol=1e-2)


def test_a_special_token_in_a_text_is_text(make):
    source_tokenizer = make().source_tokenizer
    assert source_tokenizer.encode("[END]").ids != [3]
    assert 3 not in pieces_of(source_tokenizer, "a [END] b", [(0, 1)])["encoder_input_ids"][:-1]


@pytest.mark.parametrize("kind", ["Bert", "XLMRoberta", "T5"])
def test_what_the_encoder_cannot_read_is_cut_off_for_both(kind, make, tokenizer):
    model, text = make(kind), " ".join(TEXTS * 5)
    part = readable(model.source_tokenizer, text)
    if kind == "T5":
        assert part == text
        return
    assert text.startswith(part) and len(part) < len(text) and readable(model.source_tokenizer, "a") == "a"
    batch = model.encode_sources(tokenizer, [text])
    # A word that is cut may be one piece less.
    assert LIMIT - 2 < batch["encoder_input_ids"].shape[1] <= LIMIT
    assert batch["input_ids"].shape[1] == len(part) + 1
    assert model.get_encoder()(**batch).last_hidden_state.isfinite().all()


def test_where_tokens_stand_that_were_cut():
    offsets = [(0, 1), (1, 2), (2, 3), (0, 0)]
    assert places_of(offsets, [5, 6, 7, 3], 3) == offsets
    assert places_of(offsets, [5, 6, 3], 3) == [(0, 1), (1, 2), (0, 0)]
    assert places_of(offsets[:3], [5, 6, 7, 3], 3) == offsets
    assert places_of(offsets, [5, 6], None) == offsets[:2]
    assert places_of(offsets, [], 3) == []


def test_a_text_of_which_nothing_is_left_is_read_all_the_same(make):
    nothing = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert pieces_of(nothing, "", [(0, 0)]) == dict(zip(PIECE_INPUTS, ([0], [0], [0])))
    model = make()
    inputs = {name: torch.tensor([row]) for name, row in pieces_of(nothing, "", [(0, 0)]).items()}
    assert model.get_encoder()(torch.tensor([[5]]), **inputs).last_hidden_state.isfinite().all()


@every_kind
def test_a_saved_model_needs_no_other_folder(kind, make, tokenizer, tmp_path):
    model = make(kind)
    batch = model.encode_sources(tokenizer, TEXTS)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / kind).rename(tmp_path / "gone")
    loaded, found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    again = loaded.encode_sources(tokenizer, TEXTS)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert write(loaded, batch) == write(model, batch)


def test_cached_writing_is_uncached_writing(make, tokenizer):
    model = make()
    batch = model.encode_sources(tokenizer, TEXTS)
    cached = write(model, batch)
    for way in ("greedy", "l2r", "r2l"):
        settings = {"num_beams": 3, "max_new_tokens": 7, **WAYS[way], "use_cache": False}
        assert model.generate(**batch, **settings).tolist() == cached[way]
    assert len({json.dumps(written) for written in cached.values()}) > 2


def test_what_is_missing_is_named(make, tokenizer, tmp_path):
    model = make()
    with pytest.raises(ValueError, match=r"needs encoder_input_ids, .*encode_sources\(tokenizer, texts\)"):
        model.generate(torch.tensor([[5, 6]]))
    batch = model.encode_sources(tokenizer, TEXTS)
    batch["encoder_input_ids"][0, 1] = 60
    with pytest.raises(ValueError, match="encoder_input_ids holds the id 60, outside the vocabulary of 60"):
        model.generate(**batch)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "source_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"source_tokenizer.json of its pretrained encoder is missing: copy it"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")


def test_training_rows_are_what_the_pipeline_reads(make, tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets")
    model = make()
    pairs = datasets.Dataset.from_dict({"source": [*TEXTS, " ".join(TEXTS * 5)], "target": ["cat"] * 5})
    encoded, report = encode_pairs(pairs, tokenizer, 40, 8, True, model.source_tokenizer)
    assert report.cut_source == 2
    write_titles = pipeline("bidir-seq2seq", model=model, tokenizer=tokenizer)
    for row, text in zip(encoded, pairs["source"]):
        read = write_titles.preprocess(text, max_source_length=40)
        for name in ("input_ids", "extended_input_ids", *PIECE_INPUTS):
            # Training puts an end where it cuts, as the tokenizer does.
            assert read[name][0].tolist() == row[name], name
    rows = encoded.remove_columns("length").to_list()
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = TitleCollator(tokenizer, padding=True)(rows)
        states = model.get_encoder()(**{name: x for name, x in batch.items() if name != "labels"}).last_hidden_state
        is_token = batch["attention_mask"].bool()
        if side == "right":
            expected = states[is_token]
    torch.testing.assert_close(states[is_token], expected, rtol=1e-4, atol=1e-5)


def test_the_pipeline_writes_alike_in_batches_and_alone(make, tokenizer):
    write_titles = pipeline("bidir-seq2seq", model=make(), tokenizer=tokenizer)
    settings = {"num_beams": 2, "max_new_tokens": 6}
    documents = [*TEXTS, "", "unknown: ü ö"]
    together = write_titles(documents, batch_size=4, **settings)
    assert together == [write_titles(document, **settings) for document in documents]
    assert together[4] == [{"generated_text": ""}] and len({str(titles) for titles in together}) > 2


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_encoder_gets_no_gradient_and_no_dropout(frozen, make, tokenizer):
    model = make()
    reader = model.get_encoder().pretrained
    reader.model.requires_grad_(not frozen)
    batch = model.train().encode_sources(tokenizer, TEXTS)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert reader.output.weight.grad.any()
    assert all((weight.grad is None) == frozen for weight in reader.model.parameters())
    states = [model.get_encoder()(**batch).last_hidden_state for _ in range(2)]
    assert torch.equal(*states) == frozen


# peft asks the model by a name that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_on_the_encoder_equals_the_merged_one(make, tokenizer):
    model = make()
    batch = model.encode_sources(tokenizer, TEXTS)
    before = model(**batch, labels=batch["input_ids"]).logits
    config = peft.LoraConfig(r=3, target_modules=r".*pretrained\.model\..*\.(query|value|dense)")
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, 0, 0.4)
    active = adapted(**batch, labels=batch["input_ids"]).logits
    assert not torch.allclose(active, before)
    merged = adapted.merge_and_unload().eval()
    torch.testing.assert_close(merged(**batch, labels=batch["input_ids"]).logits, active, rtol=1e-4, atol=1e-4)


LOAD = """
import json, sys
sys.modules["bidir_seq2seq"] = None
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
texts, ways = json.loads(sys.argv[1])
model = AutoModelForSeq2SeqLM.from_pretrained("titles", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("titles", trust_remote_code=True)
batch = model.encode_sources(tokenizer, texts)
settings = {"num_beams": 3, "max_new_tokens": 7}
print(json.dumps({way: model.generate(**batch, **{**settings, **ways[way]}).tolist() for way in ways}))
"""


@pytest.mark.e2e
def test_a_shared_folder_loads_where_the_package_is_not_installed(make, tokenizer, tmp_path):
    model = make()
    files = save_for_hub(model, tokenizer, tmp_path / "titles")
    assert tmp_path / "titles" / "source_tokenizer.json" in files
    card = (tmp_path / "titles" / "README.md").read_text()
    assert "pretrained (bert)" in card and "batch = model.encode_sources(tokenizer, texts)\n" in card
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", LOAD, json.dumps([TEXTS, WAYS])]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == write(model, model.encode_sources(tokenizer, TEXTS))


TINY = {"embedding_size": 8, "hidden_size": 8, "num_attention_heads": 2, "attention_head_size": 4, "min_frequency": 1}


@pytest.fixture
def run(tmp_path):
    """Trains with two updates on a few pairs."""
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"document": text, "title": text[:5]}) + "\n" for text in TEXTS * 2)
    )

    def run(name: str = "run", model: dict | None = None, validates: bool = False, **overrides):
        settings = {"encoder_type": "pretrained", "encoder_name_or_path": str(tmp_path / "bert"), **TINY}
        file = [str(tmp_path / "train.jsonl")]
        data = DataArguments(train_file=file, validation_file=file if validates else None, max_target_length=8)
        quick = {"max_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 0, "use_cpu": True, "report": False}
        quick |= {
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 1,
            "disable_tqdm": True,
            "own_partner_share": 0.0,
        }
        arguments = TrainingArguments(output_dir=str(tmp_path / name), **{**quick, **overrides})
        train(ModelArguments(**{**settings, **(model or {})}), data, arguments)
        return tmp_path / name

    save_encoder("Bert", tmp_path / "bert")
    return run


def encoder_weights(folder) -> dict[str, torch.Tensor]:
    return {
        name.partition("pretrained.model.")[2]: weight
        for name, weight in load_file(folder / "model.safetensors").items()
        if "pretrained.model." in name
    }


def test_an_encoder_learns_at_its_own_rate_or_not_at_all(run, tmp_path):
    before = load_file(tmp_path / "bert" / "model.safetensors")
    frozen = encoder_weights(run("frozen", freeze_encoder=True, validates=True))
    assert "eval_rougeL" in json.loads((tmp_path / "frozen" / "eval_results.json").read_text())
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.items()) and len(frozen) > 10
    moved = {}
    for rate in (1e-4, 1e-3):
        tuned = encoder_weights(run(f"rate-{rate}", encoder_learning_rate=rate, lr_scheduler_type="constant"))
        moved[rate] = max(float((weight - before[name]).abs().max()) for name, weight in tuned.items())
        # Adam's first updates move a weight by the rate.
        assert 0.9 * rate < moved[rate] < 2.1 * rate
    model, tokenizer = load_model_and_tokenizer(tmp_path / "frozen")
    assert model.generate(**model.encode_sources(tokenizer, TEXTS), max_new_tokens=3).shape[0] == len(TEXTS)


def test_a_run_goes_on_where_it_was_and_from_its_model(run, tmp_path):
    whole = encoder_weights(run("whole"))
    run("parts", max_steps=1, lr_scheduler_type="constant")
    folder = tmp_path / "parts"
    assert (folder / "checkpoint-1" / "source_tokenizer.json").exists() and (folder / "source_tokenizer.json").exists()
    run("constant", lr_scheduler_type="constant")
    resumed = encoder_weights(run("parts", lr_scheduler_type="constant"))
    expected = encoder_weights(tmp_path / "constant")
    assert (
        all(torch.equal(resumed[name], weight) for name, weight in expected.items()) and whole.keys() == resumed.keys()
    )
    changes = {"encoder_name_or_path": None, "model_name_or_path": str(folder)}
    assert encoder_weights(run("on", changes)).keys() == whole.keys()


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ({"encoder_name_or_path": None}, {}, "encoder_type='pretrained' needs encoder_name_or_path"),
        ({"encoder_type": "cnn"}, {}, "encoder_name_or_path=.* is for a new model with encoder_type='pretrained'"),
        (
            {"encoder_type": "cnn", "encoder_name_or_path": None},
            {"freeze_encoder": True},
            "freeze_encoder=True would keep an encoder of encoder_type='cnn' from learning",
        ),
    ],
)
def test_contradictions_are_named(run, model, overrides, message):
    with pytest.raises(ValueError, match=message):
        run("refused", model, **overrides)
