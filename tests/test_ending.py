"""How a training ends: early, in time, and always with what ends one."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_training import ROOT, RUN, TINY, files, run

from bidir_seq2seq import ending, recipe, trial
from bidir_seq2seq import training as training_module
from bidir_seq2seq.ending import PatienceCallback
from bidir_seq2seq.run_folder import numbered_checkpoints
from bidir_seq2seq.training import TrainingArguments

# A fixture that comes by its name.
__all__ = ["files"]


@pytest.fixture
def never_better(monkeypatch):
    """Validations of which the second and all after it are no better."""

    def check_metric_value(callback, args, state, control, metric_value):
        callback.early_stopping_patience_counter += state.best_metric is not None

    monkeypatch.setattr(PatienceCallback, "check_metric_value", check_metric_value)


def assert_equal_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


# The patience of these is at its end after six updates.
PATIENT = {"early_stopping_patience": 2, "max_steps": 20, "save_total_limit": None, "warmup_steps": 2}
PATIENT |= {"predict_with_generate": False, "report": False}


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, 8),
        ({"decoder_directions": "l2r"}, 8),
        # Without anything that ends a training there is nothing to wait for.
        ({"decoder_directions": "l2r", "lr_scheduler_type": "cosine"}, 6),
        ({"own_partner_share": 0.0, "lr_scheduler_kwargs": {"num_decay_steps": 3, "num_stable_steps": 4}}, 6),
        ({"own_partner_share": 0.0, "lr_scheduler_type": "cosine"}, 6),
        ({"lr_scheduler_type": "cosine"}, 8),
        ({"own_partner_share": 0.5}, 12),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 4}}, 10),
        # The last stage is as long as what is left, or has begun.
        ({"max_steps": 8}, 8),
        ({"max_steps": 7, "decoder_directions": "l2r"}, 6),
        ({"own_partner_share": 0.5, "max_steps": 10}, 10),
    ],
)
def test_a_training_that_ends_early_has_all_that_ends_one(settings, ends, files, tmp_path, never_better):
    model = {"decoder_directions": settings.pop("decoder_directions", "both")}
    settings = {**PATIENT, **settings}
    run(files, tmp_path / "early", model, **settings)
    last = numbered_checkpoints(tmp_path / "early")[0]
    assert last.name == f"checkpoint-{ends}"
    if ends > 6:
        # It is the training that was meant to be so long; but a cosine would have been another one.
        if "lr_scheduler_type" not in settings:
            del settings["early_stopping_patience"]
            run(files, tmp_path / "short", model, **{**settings, "max_steps": ends})
            of_both = (tmp_path / name / last.name / "model.safetensors" for name in ("early", "short"))
            weights, expected = map(load_file, of_both)
            assert_equal_weights(weights, expected)
        if model["decoder_directions"] == "both" and settings.get("own_partner_share") != 0:
            assert json.loads((last / "config.json").read_text())["twin_partner"] == "own"


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
def test_the_progress_bar_of_a_training_that_ends_early_comes_to_its_end(files, tmp_path, never_better, capsys):
    run(files, tmp_path, {"decoder_directions": "l2r"}, **PATIENT, disable_tqdm=False)
    bars = capsys.readouterr().err
    assert "6/20" in bars and "8/8" in bars


def test_a_training_stops_in_its_last_stage(files, tmp_path, never_better):
    run(files, tmp_path, **{**PATIENT, "early_stopping_patience": 1, "own_partner_share": 0.8, "max_steps": 20})
    # The patience ends at 4, where twins begin to read what they write; the rate falls from 16 on.
    assert numbered_checkpoints(tmp_path)[0].name == "checkpoint-18"


@pytest.mark.e2e
def test_a_resumed_run_has_waited_as_long_for_a_better_model(files, tmp_path, never_better):
    run(files, tmp_path, **PATIENT)
    steps = [int(path.name.removeprefix("checkpoint-")) for path in numbered_checkpoints(tmp_path)]
    assert steps == [8, 6, 4, 2]
    expected = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    for gone in (0, 1, 2, 3):
        for step in steps[:gone]:
            shutil.rmtree(tmp_path / f"checkpoint-{step}")
        run(files, tmp_path, **PATIENT)
        assert numbered_checkpoints(tmp_path)[0].name == "checkpoint-8"
        weights = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
        assert_equal_weights(weights, expected)
        assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 8
    # Who is told to wait longer does.
    run(files, tmp_path, **{**PATIENT, "early_stopping_patience": 5})
    assert numbered_checkpoints(tmp_path)[0].name != "checkpoint-8"


class Ticks:
    """A clock by which every update takes a second, and a trial says that one beside own writing takes 1.4."""

    def __init__(self, monkeypatch):
        self.now = -1.0
        self.tried: list[str] = []
        self.widths: list[int] = []
        monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=lambda: 0.0))
        monkeypatch.setattr(training_module, "try_out", self.try_out)
        monkeypatch.setattr(ending, "time", SimpleNamespace(monotonic=self.tick))
        # By the same clock.
        monkeypatch.setattr(ending, "seconds_before", lambda state: float(state.global_step))

    def tick(self) -> float:
        self.now += 1
        return self.now

    def try_out(self, model, own_partner_share, *args) -> ending.Pace:
        self.tried.append(model.config.decoder_directions)
        self.widths.append(model.config.hidden_size)
        return ending.Pace(1.0, own_partner_share, 1.4)


IN_TIME = {
    "eval_strategy": "no",
    "predict_with_generate": False,
    "save_total_limit": None,
    "warmup_steps": 2,
    "max_steps": 40,
    "report": False,
}
CHOSEN = {"decoder_directions": "both", "dropout": 0.0}


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        # Of 19 updates the last 4 take 1.4 times as long.
        ({}, 19),
        ({"decoder_directions": "l2r"}, 20),
        ({"decoder_directions": "l2r", "lr_scheduler_type": "linear"}, 20),
        ({"own_partner_share": 0.5}, 17),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 9}}, 19),
        # There is time for all that was planned.
        ({"max_steps": 12}, 12),
    ],
)
def test_a_training_ends_in_time_as_one_that_was_meant_to_be_so_long(settings, ends, files, tmp_path, monkeypatch):
    model = {**CHOSEN, "decoder_directions": settings.pop("decoder_directions", "both")}
    Ticks(monkeypatch)
    run(files, tmp_path / "limited", model, **{**IN_TIME, **settings, "max_train_minutes": 20 / 60})
    last = numbered_checkpoints(tmp_path / "limited")[0]
    assert last.name == f"checkpoint-{ends}"
    # A linear rate falls from the first update on, and would have been another one.
    if settings.get("lr_scheduler_type") != "linear":
        run(files, tmp_path / "short", model, **{**IN_TIME, **settings, "max_steps": ends})
        of_both = (tmp_path / name / last.name / "model.safetensors" for name in ("limited", "short"))
        weights, expected = map(load_file, of_both)
        assert_equal_weights(weights, expected)


@pytest.mark.e2e
@pytest.mark.parametrize("stopped_at", [2, 14, 16, 18])
def test_a_resumed_training_ends_in_the_same_time(stopped_at, files, tmp_path, monkeypatch):
    settings = {**IN_TIME, "max_train_minutes": 20 / 60}
    Ticks(monkeypatch)
    run(files, tmp_path, CHOSEN, **settings)
    expected = load_file(tmp_path / "checkpoint-19" / "model.safetensors")
    for path in numbered_checkpoints(tmp_path):
        if int(path.name.removeprefix("checkpoint-")) > stopped_at:
            shutil.rmtree(path)
    Ticks(monkeypatch)
    run(files, tmp_path, CHOSEN, **settings)
    assert numbered_checkpoints(tmp_path)[0].name == "checkpoint-19"
    weights = load_file(tmp_path / "checkpoint-19" / "model.safetensors")
    assert_equal_weights(weights, expected)
    # Less time than has gone changes nothing, and more is more updates.
    run(files, tmp_path, CHOSEN, **{**settings, "max_train_minutes": 1 / 60})
    assert numbered_checkpoints(tmp_path)[0].name == "checkpoint-19"
    run(files, tmp_path, CHOSEN, **{**settings, "max_train_minutes": 30 / 60})
    assert int(numbered_checkpoints(tmp_path)[0].name.removeprefix("checkpoint-")) > 20


def test_a_training_whose_time_is_over_ends_at_once_with_all_that_ends_one(files, tmp_path, monkeypatch):
    Ticks(monkeypatch)
    run(files, tmp_path, CHOSEN, **{**IN_TIME, "max_steps": 8})
    # After one more update nothing but what ends a training is left, a fifth of 12.
    Ticks(monkeypatch)
    monkeypatch.setattr(ending, "seconds_before", lambda state: 80.0)
    run(files, tmp_path, CHOSEN, **{**IN_TIME, "max_train_minutes": 20 / 60})
    assert numbered_checkpoints(tmp_path)[0].name == "checkpoint-12"


def test_a_rate_that_does_not_come_to_its_peak_is_told(files, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(ending.logger, "warning_once", said.append)
    run(files, tmp_path / "long", CHOSEN, **{**IN_TIME, "max_steps": 5, "warmup_steps": 4})
    assert not any("peak" in line for line in said)
    run(files, tmp_path / "short", CHOSEN, **{**IN_TIME, "max_steps": 5, "warmup_steps": 5})
    assert any("of 5 updates the learning rate would rise in 5 and fall in 1" in line for line in said)
    Ticks(monkeypatch)
    run(files, tmp_path / "limited", CHOSEN, **{**IN_TIME, "warmup_steps": 9, "max_train_minutes": 10 / 60})
    assert any("of 9 updates the learning rate would rise in 9 and fall in 2" in line for line in said)


def test_patience_and_time_may_both_end_a_training(files, tmp_path, never_better, monkeypatch):
    for name, seconds, ends in (("patience", 30, "checkpoint-8"), ("time", 7, "checkpoint-6")):
        Ticks(monkeypatch)
        settings = {**PATIENT, "max_train_minutes": seconds / 60}
        run(files, tmp_path / name, {"decoder_directions": "l2r", "dropout": 0.0}, **settings)
        assert numbered_checkpoints(tmp_path / name)[0].name == ends


@pytest.mark.e2e
def test_two_processes_end_at_the_same_update(files, tmp_path):
    # They would wait for each other for ever, or have other weights, if they did not.
    settings = {**TINY, **files, **RUN, **IN_TIME, "num_train_epochs": 100_000, "max_steps": -1}
    settings |= {"output_dir": str(tmp_path / "two"), "save_strategy": "no", "max_train_minutes": 0.1}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(ROOT / "scripts" / "train.py"), str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr[-2000:]
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert 10 < state["global_step"] == state["max_steps"] < 100_000
    assert state["log_history"][-1]["elapsed_seconds"] < 30
    assert json.loads((tmp_path / "two" / "config.json").read_text())["twin_partner"] == "own"


def test_what_suits_a_new_model_follows_from_how_often_there_is_time_to_see_each_pair(files, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "FEW_PAIRS", 1)
    monkeypatch.setattr(recipe, "TWINS_FROM", 2.0)
    # 24 pairs, 4 an update.
    cases = ((1, "l2r", 0.2, ["both", "l2r"]), (0.4, "l2r", 0.0, ["both", "l2r"]), (2, "both", 0.2, ["both"]))
    for minutes, directions, dropout, tried in cases:
        clock, folder = Ticks(monkeypatch), tmp_path / str(minutes)
        settings = {**IN_TIME, "max_steps": -1, "num_train_epochs": 50.0, "save_strategy": "no"}
        run(files, folder, **settings, max_train_minutes=minutes)
        config = json.loads((folder / "config.json").read_text())
        assert (config["decoder_directions"], config["dropout"]) == (directions, dropout)
        assert clock.tried == tried


@pytest.mark.parametrize(
    ("settings", "minutes", "width", "embedding", "tried"),
    [
        # 24 pairs, 4 an update: two passes are 12 updates, of which the last 3 take 1.4 times as long.
        ({}, 13 / 60, 32, 32, [32]),
        ({}, 12 / 60, 128, 128, [32, 128]),
        ({"embedding_size": 16}, 13 / 60, 32, 16, [32]),
        ({"embedding_size": 16}, 12 / 60, 128, 16, [32, 128]),
        ({"hidden_size": 16}, 13 / 60, 16, 128, [16]),
        ({}, None, 128, 128, []),
    ],
)
def test_the_width_of_a_new_model_follows_from_the_time(
    settings, minutes, width, embedding, tried, files, tmp_path, monkeypatch
):
    monkeypatch.setattr(recipe, "WIDE", 32)
    monkeypatch.setattr(training_module, "WIDE", 32)
    clock = Ticks(monkeypatch)
    model = {**dict.fromkeys(("hidden_size", "embedding_size")), **settings, "decoder_directions": "both"}
    in_time = {**IN_TIME, "max_train_minutes": minutes, "max_steps": -1, "num_train_epochs": 2.0, "save_steps": 2}
    run(files, tmp_path, model, **in_time)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["embedding_size"], clock.widths) == (width, embedding, tried)
    # A run that goes on stays as wide as it is, however much time it has then.
    for name in ("model.safetensors", "manifest.json"):
        (tmp_path / name).unlink()
    run(files, tmp_path, model, **{**in_time, "max_train_minutes": minutes and minutes + 1})
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["embedding_size"], clock.widths) == (width, embedding, tried)


def test_a_trial_leaves_no_trace_in_the_training(files, tmp_path, monkeypatch):
    paces = []

    def try_out(*args):
        paces.append(trial.try_out(*args))
        return paces[-1]

    monkeypatch.setattr(training_module, "try_out", try_out)
    # So much time that only the trial tells these from each other.
    settings = {**IN_TIME, "max_steps": 6}
    run(files, tmp_path / "tried", **settings, max_train_minutes=1000.0)
    run(files, tmp_path / "plain", **settings)
    tried, plain = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("tried", "plain"))
    assert tried == plain
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("tried", "plain")]
    assert names[0] == names[1]
    (pace,) = paces
    assert pace.seconds > 0 and pace.own_partner_share == 0.2 and pace.own_partner_cost > 1


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_is_refused(minutes):
    with pytest.raises(ValueError, match=f"max_train_minutes={minutes:g} is no time"):
        TrainingArguments(max_train_minutes=minutes)
