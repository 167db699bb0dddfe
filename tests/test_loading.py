import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from bidir_seq2seq.hub import save_for_hub
from bidir_seq2seq.loading import load_model, load_model_and_tokenizer, load_tokenizer, logger
from bidir_seq2seq.manifest import MANIFEST_NAME, write_manifest
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

LETTERS = "abcdefghijklmnopqrst"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder as training leaves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = build_char_tokenizer([LETTERS], min_frequency=1)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change_weights(folder: Path, change) -> None:
    """Rewrites the weights, with a manifest that has nothing against it."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_manifest(folder)


def test_a_sound_folder_gives_the_model_that_was_saved(saved):
    model, tokenizer = load_model_and_tokenizer(saved)
    weights = load_file(saved / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training and tokenizer.get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()
    assert load_model(str(saved), "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_is_refused_by_name(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-100] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has other content than was saved .* delete manifest.json beside"):
        load_model_and_tokenizer(folder)


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_refused_by_name(folder, size, with_manifest):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    if not with_manifest:
        (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=r"model.safetensors (is damaged|has [\d,]+ bytes instead of)"):
        load_model(folder)


def test_weights_that_the_file_lacks_are_not_drawn_at_random(folder):
    change_weights(folder, lambda weights: [weights.pop(name) for name in sorted(weights) if "decoder" in name])
    with pytest.raises(ValueError, match=r"hold no model\.decoder\..* and \d+ more, which would be random"):
        load_model(folder)


@pytest.mark.parametrize("denied", ["use_prior", "use_attention"])
def test_weights_that_the_config_has_no_place_for_are_not_dropped(folder, denied):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, denied: False}))
    # Without attention other matrices are smaller, too.
    with pytest.raises((ValueError, RuntimeError), match="which the config has no place for|mismatch"):
        load_model(folder)


def test_the_output_matrix_that_is_the_embedding_is_not_missing(tmp_path):
    model = tiny_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)


def test_a_model_from_before_titles_were_counted_loads(folder):
    change_weights(folder, lambda weights: weights.pop("prior.title_counts"))
    assert load_model(folder).prior.title_counts.sum() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    change_weights(folder, lambda weights: weights["lm_head.weight"].__setitem__((3, 2), value))
    with pytest.raises(ValueError, match="not finite in lm_head.weight: the training diverged"):
        load_model(folder)


def test_a_missing_tokenizer_is_named(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match="no tokenizer can be loaded from there .* must lie beside its weights"):
        load_model_and_tokenizer(folder)


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 3}'])
def test_a_damaged_tokenizer_is_named(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match="no tokenizer can be loaded from there"):
        load_tokenizer(folder)


def test_another_models_tokenizer_of_the_same_size_is_refused(folder, tmp_path):
    other = build_char_tokenizer([LETTERS.upper()], min_frequency=1)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", folder)
    with pytest.raises(ValueError, match="tokenizer.json has other content than was saved"):
        load_model_and_tokenizer(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda tokenizer: tokenizer.add_tokens(["new"]),
            "the tokenizer has 25 tokens and the model 24: it is",
        ),
        (lambda tokenizer: setattr(tokenizer, "eos_token", "a"), r"tokenizer's eos_token_id is \d+ and the model's 3"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_without_a_manifest_too(folder, change, message):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=message):
        load_model_and_tokenizer(folder)


def test_a_tokenizer_is_saved_as_it_was_loaded(saved, tmp_path):
    tokenizer = load_tokenizer(saved)
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()


def test_settings_that_were_edited_are_used_and_warned_of(folder, monkeypatch):
    said = []
    monkeypatch.setattr(logger, "warning_once", said.append)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "num_beams": 7}))
    assert load_model(folder).generation_config.num_beams == 7
    assert len(said) == 1 and "generation_config.json has " in said[0] and "used as it is" in said[0]


@pytest.mark.parametrize("way", ["model", "pipeline", "load_model_and_tokenizer"])
def test_what_came_from_a_folder_for_the_hub_is_saved_without_a_map_of_code(saved, tmp_path, way):
    save_for_hub(*load_model_and_tokenizer(saved), tmp_path / "hub")
    assert "auto_map" in json.loads((tmp_path / "hub" / "config.json").read_text())
    # Somebody's tokenizer may name code as well.
    settings = json.loads((tmp_path / "hub" / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["somewhere.Tokenizer", None]}
    (tmp_path / "hub" / "tokenizer_config.json").write_text(json.dumps(settings))
    if way == "pipeline":
        pipeline("bidir-seq2seq", model=str(tmp_path / "hub")).save_pretrained(tmp_path / "again")
    elif way == "model":
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "again")
    else:
        for part in load_model_and_tokenizer(tmp_path / "hub"):
            part.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").glob("*config.json"):
        assert "auto_map" not in json.loads(path.read_text()), path
    if way != "model":
        titles = [write_titles(*load_model_and_tokenizer(path), ["abcab"]) for path in (saved, tmp_path / "again")]
        assert titles[0] == titles[1]
