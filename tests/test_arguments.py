"""Settings files, and flags after them."""

import json

import pytest

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments


@pytest.fixture
def parse(tmp_path):
    """Writes a settings file and parses it, with flags after it."""

    def parse(text: str, *flags: str, name: str = "settings.yaml") -> tuple:
        (tmp_path / name).write_text(text)
        types = (ModelArguments, DataArguments, TrainingArguments)
        return parse_arguments(*types, description="", args=[str(tmp_path / name), *flags])

    return parse


def test_a_number_that_yaml_reads_as_text_becomes_a_number(parse):
    _, _, training = parse("learning_rate: 1e-3\nnum_train_epochs: 2e0\nsave_total_limit: '4'\nuse_cpu: true\n")
    assert (training.learning_rate, training.num_train_epochs, training.save_total_limit) == (0.001, 2.0, 4)


def test_text_that_is_no_number_is_refused(parse):
    with pytest.raises(ValueError, match="learning_rate is the text 'fast', but it must be a number"):
        parse("learning_rate: fast\nuse_cpu: true\n")


def test_text_stays_text(parse):
    _, data, _ = parse("train_file: '1'\nuse_cpu: true\n")
    assert data.train_file == "1"


@pytest.mark.parametrize("name", ["settings.yaml", "settings.json"])
def test_flags_after_a_file_override_it_and_nothing_else(parse, name):
    text = json.dumps({"learning_rate": 0.25, "hidden_size": 7, "seed": 3})
    flags = ("--use_cpu", "--learning_rate", "5e-4", "--lowercase", "--use_prior", "false")
    model, _, training = parse(text, *flags, name=name)
    assert (training.use_cpu, training.learning_rate, training.seed) == (True, 0.0005, 3)
    assert (model.hidden_size, model.lowercase, model.use_prior, model.use_attention) == (7, True, False, True)


@pytest.mark.parametrize("name, hint", [("hiden_size", "did you mean 'hidden_size'"), ("xyzzy", "see --help")])
def test_an_unknown_setting_is_refused(parse, name, hint):
    with pytest.raises(ValueError, match=f"there is no setting '{name}'; {hint}"):
        parse(f"{name}: 3\n")


def test_a_file_without_names_is_refused(parse):
    with pytest.raises(ValueError, match="write settings as name: value"):
        parse("just words\n")


@pytest.mark.parametrize(("name", "text"), [("settings.yaml", "learning_rate: [1\n"), ("settings.json", "not json")])
def test_a_file_that_cannot_be_read_is_named(parse, name, text):
    with pytest.raises(ValueError, match=f"{name} cannot be read as settings"):
        parse(text, name=name)
