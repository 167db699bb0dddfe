"""Settings files, and flags after them."""

import dataclasses
import json
import re
from typing import get_args, get_type_hints

import pytest

from bidir_seq2seq.arguments import check_numbers, parse_arguments
from bidir_seq2seq.commands.check_data import CheckArguments
from bidir_seq2seq.commands.diagnose import DiagnoseArguments
from bidir_seq2seq.commands.distil import DistillationArguments
from bidir_seq2seq.commands.generate import GenerateArguments
from bidir_seq2seq.commands.score import ScoreArguments
from bidir_seq2seq.commands.tune import TuneArguments
from bidir_seq2seq.demo.__main__ import main as demo
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


def test_truths_that_are_text_and_a_no_that_is_a_truth(parse):
    model, _, training = parse("eval_strategy: no\nsave_strategy: no\nuse_cpu: 'true'\nuse_copy: 'false'\n")
    assert (model.use_copy, training.use_cpu) == (False, True)
    assert (training.eval_strategy, training.save_strategy) == ("no", "no")
    assert parse('{"use_copy": "False", "use_cpu": true}', name="settings.json")[0].use_copy is False
    with pytest.raises(ValueError, match="use_copy is the text 'perhaps', but it must be true or false"):
        parse("use_copy: perhaps\n")


def test_text_stays_text(parse):
    _, data, _ = parse("train_file: '1'\nuse_cpu: true\n")
    assert data.train_file == ["1"]


@pytest.mark.parametrize("name", ["settings.yaml", "settings.json"])
def test_what_is_left_blank_is_left_out(parse, name):
    names = ["use_copy", "max_source_length", "report", "predict_with_generate", "tokenizer_type", "warmup_steps"]
    text = json.dumps(dict.fromkeys(names)) if name.endswith("json") else "".join(f"{own}:\n" for own in names)
    found, wanted = (parse(given, "--use_cpu", "true", name=name) for given in (text, "{}"))
    for one, other in zip(found, wanted):
        assert dataclasses.asdict(one) == dataclasses.asdict(other)
    assert found[0].use_copy is True and found[2].report is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target_column: no", "target_column is False, which is no text: put it in quotes"),
        ("output_dir: 2024", "output_dir is 2024, which is no text"),
        ("encoding: 1252", "encoding is 1252, which is no text"),
        ("metric_for_best_model: yes", "metric_for_best_model is True, which is no text"),
        ("tokenizer_name: false", "tokenizer_name is False, which is no text"),
        ("train_file: 3", "train_file is 3, which is no text"),
        ("train_file: [a.txt, 3]", "train_file is 3, which is no text"),
        ("source_column: [document]", r"source_column is \['document'\], which is no text"),
        ("streaming: [true]", r"streaming is \[True\], but it must be true or false"),
        ("use_copy: 2", "use_copy is 2, but it must be true or false"),
    ],
)
def test_what_yaml_makes_of_a_value_is_not_taken_for_another(parse, text, message):
    with pytest.raises(ValueError, match=message):
        parse(f"{text}\nuse_cpu: true\n")


def test_where_lists_are_meant_a_single_text_is_one(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("model_name_or_path: mine\ntext: Hello world\n")
    (found,) = parse_arguments(GenerateArguments, description="", args=[str(path)])
    assert found.text == ["Hello world"]
    path.write_text("test_file: test.jsonl\nsystems: joint\nmetrics: wer\ntarget_column: [title, headline]\n")
    (found,) = parse_arguments(ScoreArguments, description="", args=[str(path)])
    assert (found.test_file, found.systems, found.metrics) == (["test.jsonl"], ["joint"], ["wer"])
    assert found.target_column == ["title", "headline"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            DistillationArguments,
            "teacher_name_or_path: m\npairs: gold\n",
            "pairs is 'gold', but it must be one of gold+",
        ),
        (ScoreArguments, "test_file: t\nmetrics: [wer, rouge]\n", "metrics is 'rouge', but it must be one of rouge1"),
        (ModelArguments, "rnn_type: tanh\n", "rnn_type is 'tanh', but it must be one of lstm, gru"),
    ],
)
def test_what_is_no_choice_is_none_in_a_file_either(tmp_path, kind, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        parse_arguments(kind, description="", args=[str(path)])


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hiden_size", "1"], "'--hiden_size' is no setting of this command: did you mean --hidden_size?"),
        (["--xyzzy=1"], "'--xyzzy=1' is no setting of this command: see --help"),
        (["pairs.jsonl"], "'pairs.jsonl' is no setting of this command: a value stands after the name of its setting"),
    ],
)
def test_a_flag_that_there_is_not_is_named(parse, flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse("use_cpu: true\n", *flags)
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(ModelArguments, description="", args=["--hidden_size", "3", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: --model_name_or_path; see --help"),
        (["mine", "--num_beams", "x"], "argument --num_beams: invalid int value: 'x'; see --help"),
        (["mine", "--decoding_direction", "up"], "argument --decoding_direction: invalid choice: 'up' (choose from"),
        (["mine", "--num_beams"], "argument --num_beams: expected one argument; see --help"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_in_a_line(capsys, flags, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(GenerateArguments, description="", args=flags, first="model_name_or_path")
    # A usage of a hundred flags would hide it.
    assert capsys.readouterr() == ("", "")


def test_what_is_given_first_is_what_the_command_is_about(tmp_path):
    def model_of(*args: str) -> tuple:
        (found,) = parse_arguments(GenerateArguments, description="", args=args, first="model_name_or_path")
        return found.model_name_or_path, found.num_beams

    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"model_name_or_path": "mine", "num_beams": 5}))
    assert model_of("mine", "--num_beams", "5") == model_of("--num_beams", "5", "--model_name_or_path", "mine")
    assert model_of(str(settings)) == ("mine", 5) and model_of(str(settings), "--num_beams", "7") == ("mine", 7)
    with pytest.raises(ValueError, match="'other' is no setting of this command"):
        model_of("mine", "other")


NAN, INF = float("nan"), float("inf")
REQUIRED = {
    GenerateArguments: {"model_name_or_path": "m"},
    ScoreArguments: {"test_file": ["f"]},
    TuneArguments: {"model_name_or_path": "m", "validation_file": ["f"]},
    DiagnoseArguments: {"model_name_or_path": "m", "test_file": ["f"]},
    DistillationArguments: {"teacher_name_or_path": "m"},
    TrainingArguments: {"output_dir": "x", "use_cpu": True},
}
OURS = (ModelArguments, DataArguments, CheckArguments, *(kind for kind in REQUIRED if kind is not TrainingArguments))
# Of transformers' own those that say how much is trained, and how fast.
THEIRS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "generation_num_beams",
    "early_stopping_patience", "max_steps", "seed", "dataloader_num_workers", "generation_no_repeat_ngram_size",
    "save_total_limit", "learning_rate", "weight_decay", "warmup_steps", "num_train_epochs", "logging_steps",
    "eval_steps", "save_steps",
)  # fmt: skip
MAY_BE_0 = {
    "min_frequency", "shuffle_buffer_size", "num_examples", "min_new_tokens", "no_repeat_ngram_size", "seed",
    "consensus_samples",
    "dataloader_num_workers", "generation_no_repeat_ngram_size", "save_total_limit",
}  # fmt: skip


def numbers(owner) -> dict[str, bool]:
    """The numeric settings of a class, and whether each is counted in whole numbers."""
    hints, found = get_type_hints(owner), {}
    for field in dataclasses.fields(owner):
        kinds = set(get_args(hints[field.name]) or [hints[field.name]]) - {type(None)}
        if kinds <= {int, float} and (owner is not TrainingArguments or field.name in THEIRS):
            found[field.name] = kinds == {int}
    return found


CASES = [
    (owner, name, value)
    for owner in (*OURS, TrainingArguments)
    for name, is_whole in numbers(owner).items()
    for value in (NAN, INF, -INF, *([-2, 2.5, True, *([0] if name not in MAY_BE_0 else [])] if is_whole else []))
]


@pytest.mark.parametrize(("owner", "name", "value"), CASES)
def test_a_number_that_means_nothing_is_refused_at_once(owner, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}.* (must be a|make no update)"):
        owner(**{**REQUIRED.get(owner, {}), name: value})


def test_the_table_has_every_command():
    assert len(CASES) > 250
    assert set(THEIRS) == set(numbers(TrainingArguments))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1e-3}, "learning_rate=-0.001 must be a number of at least 0, or leave it out for 0.002"),
        ({"num_train_epochs": 0}, "max_steps=-1 and num_train_epochs=0 make no update: say"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps=0 is no interval"),
        ({"eval_strategy": "steps", "eval_steps": 0}, "eval_steps=0 is no interval: .* eval_strategy='no'"),
        ({"logging_steps": 0}, "logging_steps=0 is no interval"),
        ({"warmup_steps": 0.1, "max_train_minutes": 5}, "warmup_steps=0.1 with max_train_minutes=5: there is a share"),
        (
            {"eval_strategy": "steps", "eval_steps": 0.1, "save_strategy": "no", "max_train_minutes": 5},
            "eval_steps=0.1 with max_train_minutes=5",
        ),
    ],
)
def test_numbers_of_a_training_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments("x", use_cpu=True, **settings)


def test_what_may_be_done_about_a_number():
    with pytest.raises(ValueError, match="max_train_samples=-1 must be a whole number .* 1, or leave it out$"):
        DataArguments(max_train_samples=-1)
    with pytest.raises(ValueError, match="batch_size=0 must be a whole number of at least 1, or leave it out for 32$"):
        ScoreArguments(test_file=["f"], batch_size=0)
    with pytest.raises(ValueError, match="length_penalty=nan must be a number, or leave it out$"):
        GenerateArguments(model_name_or_path="m", length_penalty=NAN)
    assert GenerateArguments(model_name_or_path="m", length_penalty=-1.5).length_penalty == -1.5
    check_numbers(DataArguments(), max_train_samples=1)


@pytest.mark.parametrize("port", ["-1", "0", "65536"])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ValueError, match=f"port={port} must be a whole number of 1 to 65535, or leave it out"):
        demo(["some_folder", "--port", port])
