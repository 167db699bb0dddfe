"""The comparisons with other libraries, without them: arguments, turns, tables, and our own systems."""

import json
import math
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_config, tiny_model
from safetensors.torch import save_file

from bidir_seq2seq.tokenization import build_char_tokenizer, build_word_tokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "peers")]
bart, bidir, worker = map(import_module, ("bart", "bidir", "worker"))
comparison, rerun, roofline = map(import_module, ("comparison", "rerun", "roofline"))
kill, million, quality, sizes, study = map(import_module, ("kill", "million", "quality", "sizes", "study"))
decode, decode_linear, half_precision, shortlist, train = map(
    import_module, ("decode", "decode_linear", "half_precision", "shortlist", "train")
)
ablation, encoders = map(import_module, ("ablation", "encoders"))

# So few words that a search which may end early does.
SIZES = {"vocab_size": 8, "hidden_size": 16, "num_layers": 1, "max_length": 20, "dtype": "float32", "length": 12}
PAIRS = [([5, 6, 7], [4, 5]), ([4, 5, 6, 7, 4], [5]), ([1, 6], [7, 6, 5])]


@pytest.fixture(scope="module")
def pair_files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("pairs")
    flags = []
    for split in ("train", "test"):
        file = folder / f"{split}.jsonl"
        words = [f"{a}{b}" for a in "abcdef" for b in "ghijkl"]
        rows = [{"document": " ".join(words[i : i + 9]), "summary": " ".join(words[i : i + 3])} for i in range(20)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags += [f"--{split}_file", str(file)]
    return flags


def recorded(wall: list[float], tokens: int = 64, sentences: int = 2, **fields) -> dict:
    rounds = len(wall)
    return {
        "parameters": 6_500_000,
        "sentences": sentences,
        "wall_seconds": wall,
        "cpu_seconds": [second / 2 for second in wall],
        "tokens": [tokens] * rounds,
        "peak_bytes": [400_000_000 + 1_000_000 * i for i in range(rounds)],
        **fields,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"train_file": "a.jsonl"}, "train_file and test_file go together"),
        ({"dtypes": ["float16"]}, "dtypes=['float16'] is not known: use float32, bfloat16"),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused(flags, message):
    with pytest.raises(ValueError) as error:
        decode.DecodeArguments(**flags)
    assert message in str(error.value)


def test_an_unknown_system_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'GRU' is not known; use some of 'l2r', 'twin', 'l2r copies'"):
        comparison.select_systems(train.SYSTEMS, ["GRU"])
    assert list(comparison.select_systems(train.SYSTEMS, ["BART", "l2r"])) == ["l2r", "BART"]


def test_a_precision_adds_rows_for_our_searches_only():
    rows = comparison.with_dtypes(decode.SYSTEMS, ["float32", "bfloat16"])
    added = {name: system.dtype for name, system in rows.items() if name not in decode.SYSTEMS}
    ours = [name for name in decode.SYSTEMS if name.startswith(("l2r", "both", "joint"))]
    assert len(ours) == 9 and added == {f"{name} bfloat16": "bfloat16" for name in ours}


@pytest.mark.parametrize("program", [decode, train])
def test_every_ratio_is_of_two_systems_of_the_table(program):
    rows = comparison.with_dtypes(program.SYSTEMS, ["float32", "bfloat16"])
    pairs = program.pairs_of(["float32", "bfloat16"])
    assert len(set(pairs)) == len(pairs) and {name for pair in pairs for name in pair} <= set(rows)


def test_every_library_has_a_driver_and_exact_pins():
    drivers = {system.driver for systems in (decode.SYSTEMS, train.SYSTEMS) for system in systems.values()}
    assert all((BENCHMARKS / "peers" / f"{driver}.py").exists() for driver in drivers)
    assert set(comparison.LIBRARIES) == drivers - {"bidir", "bart"}
    for driver in comparison.LIBRARIES:
        pins = (BENCHMARKS / "peers" / f"{driver}.txt").read_text().split()
        assert "torch==2.13.0" in pins and all(pin.count("==") == 1 for pin in pins)


def test_systems_run_in_turns():
    order = []
    results = comparison.in_turns({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3)
    assert order == list("ababab") and results == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_the_table_shows_median_range_memory_and_what_went_wrong():
    results = {"ours": recorded([1.0, 2.0, 4.0]), "theirs": {"error": "no such library"}}
    _, ours, theirs = comparison.Figures(results, "tokens", "wall").table().splitlines()
    assert ours.split() == ["ours", "32.0", "16.0", "64.0", "402", "6,500,000"]
    assert theirs.split(maxsplit=1) == ["theirs", "no such library"]
    assert comparison.Figures(results, "sentences", "cpu").speeds("ours") == [4.0, 2.0, 1.0]


def test_ratios_are_taken_round_by_round():
    results = {"fast": recorded([1.0, 2.0, 1.0]), "slow": recorded([2.0, 8.0, 1.0]), "ill": {"error": "no"}}
    figures = comparison.Figures(results, "tokens", "wall")
    assert figures.ratio("fast", "slow") == {"median": 2.0, "low": 1.0, "high": 4.0}
    assert figures.ratio("fast", "ill") is None and figures.ratio("absent", "slow") is None


def test_systems_that_did_different_work_are_not_compared():
    fewer = recorded([1.0], tokens=16, sentences=1)
    comparison.check_tokens({"all": recorded([1.0]), "ill": {"error": "no"}})
    with pytest.raises(RuntimeError, match="'all': 32.0, 'fewer': 16.0"):
        comparison.check_tokens({"all": recorded([1.0]), "fewer": fewer})


def test_pairs_lose_the_end_that_each_library_adds(pair_files):
    arguments = decode.DecodeArguments(train_file=pair_files[1], test_file=pair_files[3], vocab_size=60)
    encoded = comparison.load_batches(arguments)["test"]
    (source, target), *_ = comparison.plain_pairs(encoded, 2)
    assert [*source, 3] == encoded[0]["input_ids"] and [*target, 3] == encoded[0]["labels"]
    with pytest.raises(ValueError, match="21 pairs are needed and there are 20"):
        comparison.plain_pairs(encoded, 21)


def test_a_shortlist_is_compared_with_the_whole_vocabulary(pair_files, tmp_path, capsys):
    tokenizer = build_char_tokenizer(["abcdefghijkl "], min_frequency=1)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    flags = ["--model_name_or_path", *folders, "--test_file", pair_files[3], "--max_samples", "6"]
    output = tmp_path / "out" / "shortlist.json"
    shortlist.main([*flags, "--sizes", "1", str(len(tokenizer)), "--systems", "l2r", "both", "--output", str(output)])
    results = json.loads(output.read_text())["results"]
    assert [(row["system"], row["vocabulary_shortlist"]) for row in results] == [
        (system, size) for system in ("l2r", "both") for size in (1, len(tokenizer))
    ]
    for row in results[1::2]:
        assert row["difference"] == row["changed"] == 0 and row["p_value"] == 1
    for row in results:
        assert row["times"] > 0 and 0 <= row["rougeL"] <= 100 and 0 <= row["changed"] <= 1
        assert sum(row["by_model"]) / 2 == pytest.approx(row["difference"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 3


@pytest.mark.e2e
def test_models_of_a_shortlist_study_are_trained_once(pair_files, tmp_path):
    settings = {
        "train_file": pair_files[1],
        "validation_file": pair_files[3],
        "tokenizer_type": "bpe",
        "vocab_size": 3000,
        "hidden_size": 16,
        "max_steps": 1,
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    flags = ["--test_file", pair_files[3], "--seeds", "0", "1", "--settings", str(tmp_path / "settings.yaml")]
    flags += ["--vocab_size", "60", "--output_dir", str(tmp_path / "models"), "--max_samples", "2"]
    flags += ["--sizes", "5", "--systems", "l2r"]
    shortlist.main(flags)
    weights = [tmp_path / "models" / f"seed-{seed}" / "model.safetensors" for seed in (0, 1)]
    before = [file.stat().st_mtime_ns for file in weights]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    assert json.loads(weights[0].with_name("config.json").read_text())["vocab_size"] <= 60
    shortlist.main(flags)
    assert [file.stat().st_mtime_ns for file in weights] == before
    with pytest.raises(ValueError, match="seed-0 has a model of other settings, .*: choose another output_dir"):
        shortlist.main([*flags, "--vocab_size", "61"])


def test_a_shortlist_study_needs_models_or_seeds():
    with pytest.raises(ValueError, match="--seeds"):
        shortlist.main(["--test_file", "test.jsonl"])


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (torch.mm, [(3, 50), (50, 4)]),
        (torch.bmm, [(2, 3, 50), (2, 50, 4)]),
        (torch.addmm, [(4,), (3, 50), (50, 4)]),
        (torch.baddbmm, [(2, 1, 4), (2, 3, 50), (2, 50, 4)]),
    ],
)
def test_emulated_products_add_up_in_float32_and_round_once(product, shapes):
    factors = [torch.randn(shape).bfloat16() for shape in shapes]
    with half_precision.RoundedProducts():
        found = product(*factors)
        written = torch.empty_like(found)
        if product is torch.mm:
            assert torch.mm(*factors, out=written) is written and torch.equal(written, found)
        whole = torch.mm(torch.ones(2, 2), torch.full((2, 2), 1 + 2**-12))
    exact = product(*(factor.double() for factor in factors))
    assert found.dtype == torch.bfloat16
    # Half a unit in the last of 8 places, and what float32 loses.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    assert whole.dtype == torch.float32 and (whole == 2 + 2**-11).all()


@pytest.mark.e2e
def test_half_precision_is_compared_with_float32_seed_by_seed(pair_files, tmp_path, capsys, monkeypatch):
    settings = {
        "train_file": pair_files[1],
        "validation_file": pair_files[3],
        "min_frequency": 1,
        "embedding_size": 8,
        "hidden_size": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "num_attention_heads": 2,
        "attention_head_size": 4,
        "max_target_length": 8,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    flags = ["--settings", str(tmp_path / "settings.json"), "--test_file", pair_files[3], "--max_samples", "5"]
    flags += ["--output_dir", str(tmp_path / "runs"), "--max_steps", "2", "--seeds", "0", "1"]
    half_precision.main(flags)
    first = capsys.readouterr().out
    rows = json.loads((tmp_path / "runs" / "results.json").read_text())["results"]
    losses = {row["trained_in"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01) and losses["bfloat16"] != losses["float32"]
    ways = [(row["system"], row["trained_in"], row["written_in"]) for row in rows if "system" in row]
    assert ways == [(system, *way) for system in half_precision.SYSTEMS for way in half_precision.WAYS]
    assert all(len(row["rougeL"]) == 2 for row in rows if "system" in row)

    # What was done is not done again, and nothing else is taken for it.
    monkeypatch.setattr(half_precision, "train_seed", None)
    half_precision.main(flags)
    assert capsys.readouterr().out.splitlines()[-9:] == first.splitlines()[-9:]
    with pytest.raises(ValueError, match="has other settings.*choose another output_dir"):
        half_precision.main([*flags, "--num_beams", "2"])


def test_rerunning_everything_writes_the_full_length():
    sources, mask = bidir.pad_ids([[5, 6, 7, 8], [9, 10], [11]])
    found = rerun.rerun_everything(tiny_model(), sources, mask, length=6, num_beams=3)
    assert len(found) == 3
    assert all(len(title.ids) == 6 and min(title.ids) > 3 for titles in found for title in titles)


@pytest.mark.parametrize(
    ("driver", "settings"),
    [
        (bidir, {"config": {}, "generate": {"num_beams": 2}, "rerun": False}),
        (bidir, {"config": {}, "generate": {"num_beams": 2, "joint_rescoring": True}, "rerun": False}),
        (bidir, {"config": {"decoder_directions": "l2r"}, "generate": {"num_beams": 3}, "rerun": False}),
        (bidir, {"config": {}, "generate": {"num_beams": 2}, "rerun": True}),
        (bart, {"generate": {"num_beams": 2}}),
    ],
)
def test_searches_write_the_forced_length(driver, settings):
    parameters, run = driver.prepare_decode({**SIZES, **settings}, [PAIRS, PAIRS[:1]])
    parameters = list(parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 1)
        if driver is bidir:
            # The output layer's bias, by which each title would like to end at once.
            parameters[-1][2:4] = 100
    assert run() == 4 * SIZES["length"]


@pytest.mark.parametrize("driver", [bidir, bart])
def test_training_learns_and_counts_each_target_token_once(driver, tmp_path):
    parameters, run = driver.prepare_train({**SIZES, "config": {}, "scratch_dir": str(tmp_path)}, [PAIRS, PAIRS[:1]])
    parameters = list(parameters)
    before = [parameter.clone() for parameter in parameters]
    assert run() == sum(len(target) + 1 for _, target in [*PAIRS, PAIRS[0]])
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters))


def test_every_id_but_the_special_ones_is_a_word():
    assert worker.vocabulary(8) == ["4", "5", "6", "7"]
    assert worker.words([1, 6]) == ["1", "6"] and worker.peak_bytes() > 10_000_000


@pytest.mark.e2e
def test_one_command_measures_and_reports(pair_files, tmp_path, capsys):
    output, systems = tmp_path / "new" / "decode.json", ["l2r beam 3", "JoeyNMT beam 5"]
    flags = {"peers_dir": tmp_path, "vocab_size": 60, "hidden_size": 16, "batch_size": 4, "rounds": 2, "length": 3}
    texts = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    decode.main([*pair_files, *texts, "--systems", *systems, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "batch size 1\n" in printed and "batch size 4\n" in printed
    assert f"JoeyNMT beam 5 not in {tmp_path}: run with --setup first" in printed
    figures = json.loads(output.read_text())
    ours = figures["results"]["batch size 4"]["l2r beam 3"]
    assert ours["tokens"] == [12, 12] and len(ours["wall_seconds"]) == 2 and min(ours["cpu_seconds"]) > 0
    assert set(ours["versions"]) == {"torch", "bidir_seq2seq", "transformers"} and figures["machine"]["cores"] >= 1


def test_what_stops_a_system_is_told():
    results = comparison.compare({"ill": comparison.System("absent")}, "train", {}, [PAIRS], train.TrainArguments())
    assert "absent.py" in results["ill"]["error"] and "No such file" in results["ill"]["error"]


def test_growth_with_the_length_is_measured_on_both_ways(tmp_path, capsys):
    output = tmp_path / "growth.json"
    sizes = ["--source_length", "4", "--vocab_size", "30", "--repeats", "1", "--output", str(output)]
    decode_linear.main(["--lengths", "2", "3", "--num_beams", "2", *sizes])
    assert [set(row) for row in json.loads(output.read_text())["seconds"]] == [{"length", "ours", "rerun"}] * 2


@pytest.mark.e2e
def test_encoders_are_timed_in_turns_and_their_models_compared(pair_files, tmp_path, capsys, monkeypatch):
    output, data = tmp_path / "encoders.json", Path(pair_files[1]).parent
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text((data / f"{name}.jsonl").read_text())
    settings = {"min_frequency": 1, "embedding_size": 8, "hidden_size": 8, "num_attention_heads": 2, "warmup_steps": 0}
    (tmp_path / "settings.yaml").write_text(json.dumps({**settings, "attention_head_size": 4}))
    sizes = ["--size", "16", "--vocab_size", "20", "--batch_size", "2", "--layers", "1", "--rounds", "2"]
    sizes += ["--lengths", "3", "70", "--encoders", "lstm", "cnn", "--output", str(output)]
    files = ["--data_dir", str(tmp_path / "data"), "--settings", str(tmp_path / "settings.yaml")]
    encoders.main([*sizes, *files, "--seconds", "0.05", "--models_dir", str(tmp_path / "models")])
    figures = json.loads(output.read_text())
    assert len(figures["speed"]) == 8 and all(len(row["seconds"]) == 2 for row in figures["speed"])
    assert figures["speed"][0]["ratio"] == 1
    lstm, cnn = figures["quality"]
    assert (lstm["encoder"], cnn["encoder"]) == ("lstm", "cnn") and cnn["updates"] >= 1
    assert len(cnn["rougeL"]["joint"]) == 20 and lstm["difference"]["l2r"]["difference"] == 0
    assert "ROUGE-L" in capsys.readouterr().out
    monkeypatch.setattr(encoders, "ROOT", tmp_path)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    curves, plot = [], encoders.plt.Axes.plot

    def noted(axis, *args, **kwargs):
        curves.append(args)
        return plot(axis, *args, **kwargs)

    monkeypatch.setattr(encoders.plt.Axes, "plot", noted)
    encoders.main(["--draw", str(output)])
    assert (tmp_path / "docs" / "images" / "encoders.png").read_bytes().startswith(b"\x89PNG")
    # Two encoders in each panel, at both lengths; the last is their memory.
    assert [lengths for lengths, _ in curves] == 6 * [[3, 70]]
    memory = [row["megabytes"] for row in figures["speed"] if row["pass"] == "forward and back"]
    assert sorted(memory) == sorted(curves[4][1] + curves[5][1])


def test_the_work_of_steps_is_counted():
    # Two documents of 5 tokens and titles of 3; one layer, sizes E 10, H 12, A 8 in 2 heads, V 24.
    size = roofline.Size(tiny_config(encoder_layers=1, decoder_layers=1), source_length=5, target_length=3)
    step = roofline.search_work(size, batch_size=2, num_beams=3, directions=1, written=4)
    assert step["decoders"].flops == 2 * 6 * 48 * (10 + 12) and step["decoders"].exps == 5 * 6 * 12
    assert step["attention"].flops == 2 * 6 * (12 * 8 + 2 * 5 * 8) and step["attention"].exps == 6 * 2 * 5
    assert step["projection and scores"].flops == 2 * 6 * ((12 + 8) * 10 + 10 * 24)
    assert step["projection and scores"].exps == 6 * 24
    both = roofline.search_work(size, batch_size=2, num_beams=3, directions=2, written=4)
    # 3 x 3 pairs of either side, each of which reads what its partner has written.
    assert both["projection and scores"].exps == 6 * step["projection and scores"].exps
    assert both["attention"].exps == 2 * (6 * 2 * 5 + 18 * 2 * 4)

    update = roofline.training_work(size, batch_size=2)
    assert update["encoder"].flops == 3 * 2 * 10 * 2 * 24 * (10 + 6) and update["encoder"].exps == 5 * 10 * 12
    assert update["decoders"].flops == 3 * 2 * step["decoders"].flops
    assert update["projection and loss"].exps == 2 * 6 * 24


def test_every_step_is_set_against_its_floors(tmp_path, monkeypatch, capsys):
    size = roofline.Size(tiny_config(), source_length=5, target_length=3)
    monkeypatch.setattr(roofline, "SIZES", {"tiny": size})
    monkeypatch.setattr(roofline, "COPY_FLOATS", 2**16)
    monkeypatch.setattr(roofline, "PRODUCT_SIZE", 64)
    threads = torch.get_num_threads()
    output = tmp_path / "out" / "roofline.json"
    flags = ["--batch_size", "2", "--repeats", "1", "--written", "2", "--threads", str(threads), "--hand_back_memory"]
    roofline.main([*flags, "--output", str(output)])
    steps = json.loads(output.read_text())["steps"]
    assert [step["title"] for step in steps] == [
        "Training step, tiny, batch 2",
        "Search step, one direction, K = 5, tiny, batch 2",
        "Search step, both directions, K = 3, tiny, batch 2",
    ]
    for step in steps:
        whole = step["parts"].pop("whole")
        for name in ("flops", "moved", "exps", "floor", "seconds"):
            assert whole[name] == pytest.approx(sum(part[name] for part in step["parts"].values()))
        for part in (whole, *step["parts"].values()):
            assert part["floor"] > 0 and part["ratios"]["ratio"] == pytest.approx(part["seconds"] / part["floor"])
            # The more a floor counts, the nearer it is.
            assert abs(part["ratios"]["ratio"]) <= abs(part["ratios"]["no exp"]) * 1.000001
            assert abs(part["ratios"]["torch.mm"]) <= abs(part["ratios"]["no exp"]) * 1.000001
    assert capsys.readouterr().out.count("bookkeeping") == 3


def test_products_are_counted_as_by_hand():
    changes = {"decoder_directions": "l2r", "use_attention": False, "use_prior": False, "rnn_type": "gru"}
    config = tiny_config(**changes)
    parameters, parts = sizes.products(config, source_length=7, target_length=5)
    e, h, v = config.embedding_size, config.hidden_size, config.vocab_size
    # Two layers a side; a GRU has three gates, and half the width each way in the encoder.
    assert parts["document"] == 7 * 2 * 3 * (h // 2) * (e + h // 2 + h + h // 2)
    assert parts["output layer"] == 5 * v * e
    assert parts["decoders"] >= 5 * 3 * h * (e + h + h + h)
    assert parameters == sum(p.numel() for p in tiny_model(**changes).parameters())


def test_the_study_of_kills_sees_any_difference(tmp_path):
    for name in ("whole", "other"):
        checkpoint = tmp_path / name / f"checkpoint-{kill.UPDATES}"
        checkpoint.mkdir(parents=True)
        for folder in (checkpoint, checkpoint.parent):
            save_file({"weight": torch.ones(3)}, folder / "model.safetensors")
        for part in ("optimizer", "scheduler"):
            torch.save({"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.1}]}, checkpoint / f"{part}.pt")
        log = [{"loss": 1.0, "elapsed_seconds": len(name)}, {"train_runtime": len(name)}]
        (checkpoint.parent / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert kill.first_difference(whole, other) is None
    (other / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.1}]}))
    assert kill.first_difference(whole, other) == "the log"
    torch.save({"state": {0: {"step": torch.tensor(4.0)}}, "groups": [{"lr": 0.1}]}, checkpoint / "optimizer.pt")
    assert kill.first_difference(whole, other) == "optimizer.pt"
    save_file({"weight": torch.tensor([1, 1, 1 + 1e-6])}, other / "model.safetensors")
    assert kill.first_difference(whole, other) == "model.safetensors"


def test_a_million_pairs_are_made_and_watched(tmp_path):
    million.write_pairs(tmp_path / "a.jsonl", 50)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 50 and all(row["text"].startswith(row["title"]) for row in rows)
    hungry = [sys.executable, "-c", "import time; x = b'1' * 50_000_000; time.sleep(0.5)"]
    figures = million.watch(hungry, tmp_path / "cache")
    assert 40 < figures["own_mb"] < 200 and figures["seconds"] > 0
    with pytest.raises(RuntimeError, match="failed: see"):
        million.watch([sys.executable, "-c", "exit(3)"], tmp_path / "cache")
    with pytest.raises(ValueError, match="steps=.*none of"):
        million.MillionArguments(steps=["sing"])
    with pytest.raises(ValueError, match="kills=0 must be at least 1"):
        million.MillionArguments(kills=0)


WRITER = """
import os, sys, time
from pathlib import Path
file = Path(sys.argv[sys.argv.index("--output_file") + 1])
part = Path(f"{file}.partial")
done = part.read_text().count("\\n") if "--resume" in sys.argv else 0
with open(part, "a" if done else "w") as stream:
    for number in range(done, 20):
        stream.write(f"title {number}\\n")
        stream.flush()
        time.sleep(0.1)
os.rename(part, file)
"""


@pytest.mark.e2e
def test_titles_are_killed_at_random_places_and_compared(tmp_path):
    arguments = million.MillionArguments(kills=2, seed=7)
    # An honest writer, and one whose titles tell which process wrote them.
    (tmp_path / "honest.py").write_text(WRITER)
    (tmp_path / "false.py").write_text(WRITER.replace("title {number}", "title {os.getpid()}"))
    found = {}
    for name in ("honest", "false"):
        folder = tmp_path / name
        folder.mkdir()
        places = (folder / "pairs.jsonl", folder / "model", folder / "cache")
        steps = million.write_titles_twice([sys.executable, str(tmp_path / f"{name}.py")], *places, 20, arguments)
        if name == "false":
            with pytest.raises(RuntimeError, match="the titles differ"):
                dict(steps)
        else:
            found = dict(steps)
    assert found["generate"]["seconds"] > 0 and len(found["killed"]["killed_after_lines"]) == 2
    assert all(0 < lines < 20 for lines in found["killed"]["killed_after_lines"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budgets": [1800, 600]}, r"budgets=\[1800, 600\] must ascend"),
        ({"budgets": [600, 600]}, r"budgets=\[600, 600\] must ascend"),
        ({"systems": ["ours", "T5"]}, "systems='T5' must be some of ours, OpenNMT-py, BART, twins, "),
        ({"data": ["newspapers"]}, "data='newspapers' must be some of xwlb_brief"),
    ],
)
def test_quality_is_asked_for_by_known_names_and_ascending_budgets(settings, message):
    with pytest.raises(ValueError, match=message):
        quality.QualityArguments(**settings)
    assert quality.QualityArguments(budgets=[1, 2]).budgets == [1, 2]


def write_quality(system: str, budget: int, seed: int, figures: list[float], by_pair: list[float]) -> None:
    """A file of results as a run leaves it, with a figure for each way of the system."""
    more = {"search_seconds": 7.0, "first4": 11.0, "last4": 12.5}
    ways = {
        way: {"rougeL": figure, "by_pair": by_pair, **more}
        for way, figure in zip(quality.WAYS[quality.base_of(system)], figures)
    }
    result = {"data": "xwlb_brief", "system": system, "seed": seed, "budget": budget, "ways": ways}
    result |= {"updates": 400 + 100 * seed, "seconds": 599.0, "parameters": 2_000_000}
    quality.save(quality.RESULTS / "xwlb_brief" / f"{system}-{budget}-{seed}.json", result)


def test_the_table_of_quality_is_made_of_result_files_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    quality.main([])
    assert "no results in" in capsys.readouterr().out
    better, worse = [40.0, 60.0] * 20, [10.0, 30.0] * 20
    for seed, by_pair in ((0, better), (1, [pair + 2 for pair in better])):
        write_quality("ours", 600, seed, [50.0 + 2 * seed, 45.0, 55.0], by_pair)
    write_quality("BART", 600, 0, [20.0, 19.0], worse)
    write_quality("ours", 1200, 0, [60.0, 59.0, 61.0], better)
    # What was chosen among the candidates is no result, nor is what a killed run was writing.
    quality.save(quality.RESULTS / "xwlb_brief" / "ours-tuned.json", {"options": {}})
    (quality.RESULTS / "xwlb_brief" / "BART-1200-0.unfinished").write_text("{")
    (tmp_path / "docs" / "images").mkdir(parents=True)
    quality.main([])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[:1] in (["600"], ["1200"])]
    assert [row[:3] for row in rows] == [
        ["600", "ours", "default"],
        ["600", "ours", "l2r"],
        ["600", "ours", "l2r,"],
        ["600", "BART", "beam"],
        ["600", "BART", "beam"],
        ["1200", "ours", "default"],
        ["1200", "ours", "l2r"],
        ["1200", "ours", "l2r,"],
    ]
    # Seeds, mean over them, both edges, updates, seconds, seconds of the search, parameters.
    assert rows[0][3:] == ["2", "51.00", "11.0", "12.5", "450", "599", "7", "2,000,000"]
    # Ours as it writes by default is, over both seeds, 31 above each way of BART in every pair.
    assert rows[3][3:7] == ["3,", "mean", "1", "20.00"]
    assert rows[3][-4:-1] == ["+31.00", "[+31.00,", "+31.00]"] and rows[3][-1] < "p=0.001"
    assert (tmp_path / "docs" / "images" / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.e2e
def test_our_systems_run_from_another_checkout_too(tmp_path):
    systems = {"twin": comparison.System("bidir"), "BART": comparison.System("bart")}
    assert comparison.with_before(systems, None) == (systems, [])
    both, ratios = comparison.with_before(systems, str(tmp_path))
    assert list(both) == ["twin", "BART", "twin before"] and ratios == [("twin", "twin before")]
    other = tmp_path / "src" / "bidir_seq2seq"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('this is the other checkout')\n")
    before = {"twin before": both["twin before"]}
    results = comparison.compare(before, "train", {}, [PAIRS], train.TrainArguments())
    assert "this is the other checkout" in results["twin before"]["error"]


@pytest.mark.parametrize(
    ("titles", "unknown", "known"),
    [
        (["Ada saw it", "Ada"], 1, 1),
        (["it saw Ada Lovelace Ada", "Lovelace"], 2, 1),
        (["saw Lovelace", "saw saw"], 1, 2),
        (["it", ""], 0, 0),
        (["Babbage", "Zuse"], 0, 0),
    ],
)
def test_words_are_counted_where_the_reference_took_them(titles, unknown, known):
    tokenizer = build_word_tokenizer(["it saw"], min_frequency=1)
    pairs = {"source": ["Ada Lovelace saw it Ada", "Zuse saw"], "target": ["Ada Lovelace saw Babbage", "it saw"]}
    assert ablation.taken_words_written(tokenizer, pairs, titles) == {"unknown": [unknown, 2], "known": [known, 2]}


def test_what_twins_read_in_a_study_does_not_hang_on_defaults():
    recipes = {name: changes for name, (changes, _, _) in study.RECIPES.items() if not name.startswith("settled")}
    for file in (BENCHMARKS / "strong").glob("*.yaml"):
        recipes[file.name] = yaml.safe_load(file.read_text())
    for name, changes in recipes.items():
        assert "decoder_directions" in changes or "twin_partner" in changes, name


def test_a_way_that_is_new_is_counted_where_it_was_written(capsys):
    def run_of(seed: int, **figures: float) -> dict:
        ways = {way: {"rougeL": x, "by_pair": [x, x], "search_seconds": 1.0} for way, x in figures.items()}
        # Of one that was stopped on its way they are not known.
        seconds = 10.0 * seed if seed < 3 else math.nan
        return {"data": "csl", "recipe": "alone-own", "seed": seed, "seconds": seconds, "ways": ways}

    runs = {1: run_of(1, joint=50.0), 2: run_of(2, joint=52.0, drawn=56.0), 3: run_of(3, joint=54.0, once=54.0)}
    study.report({"csl": {"alone-own": runs}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("alone-own")]
    # Way, seeds, mean; and the seconds of those trainings alone.
    assert [(line[1], line[2], line[3], line[7]) for line in lines] == [
        ("joint", "3", "52.00", "15"),
        ("drawn", "1", "56.00", "20"),
        ("once", "1", "54.00", "nan"),
    ]


def test_drawn_titles_are_compared_with_those_of_one_direction_too(capsys):
    def run_of(recipe: str, **figures: float) -> dict:
        ways = {way: {"rougeL": x, "by_pair": [x - 1, x + 1], "search_seconds": 1.0} for way, x in figures.items()}
        return {0: {"data": "csl", "recipe": recipe, "seed": 0, "seconds": 10.0, "ways": ways}}

    alone = run_of("l2r", **{"l2r beam 3": 50.0, "l2r beam 10": 49.0, "l2r, drawn": 53.0})
    study.report({"csl": {"l2r": alone, "alone-own": run_of("alone-own", joint=51.0, drawn=55.5)}})
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("alone-own")]
    found = [[float(x) for x in re.findall(r"([+-]\d+\.\d+) \[", line)] for line in lines]
    assert found == [[1.0], [5.5, 2.5]]


def test_how_a_study_learns_does_not_hang_on_defaults():
    files = [*BENCHMARKS.glob("*/*.yaml")]
    assert {file.parent.name for file in files} == {"study", "strong", "ten_passes"}
    for file in files:
        assert {"dropout", "label_smoothing", "lr_scheduler_type"} <= set(yaml.safe_load(file.read_text())), file


def test_a_recipe_of_similar_pairs_reads_them_in_all_its_files(tmp_path):
    given = tmp_path / "data" / "cmudict_g2p"
    given.mkdir(parents=True)
    words = {"train": ["C A T", "C A R T"], "validation": ["C A R"], "test": ["R A T"]}
    for name, letters in words.items():
        rows = [{"letters": word, "phonemes": word.lower(), "references": [word.lower()]} for word in letters]
        (given / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = study.StudyArguments(data_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "models"))
    assert study.pairs_folder(arguments, "cmudict_g2p", "l2r") == given
    folder = study.pairs_folder(arguments, "cmudict_g2p", "l2r-similar")
    read = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in words}
    assert [row["letters"] for row in read["train"]] == ["C A T | C A R T / c a r t", "C A R T | C A T / c a t"]
    assert [row["letters"] for row in read["validation"]] == ["C A R | C A R T / c a r t"]
    assert read["test"] == [{"letters": "R A T | C A T / c a t", "phonemes": "r a t", "references": ["r a t"]}]
    # What is there is not made again.
    (folder / "test.jsonl").write_text("mine")
    assert study.pairs_folder(arguments, "cmudict_g2p", "similar") == folder
    assert (folder / "test.jsonl").read_text() == "mine"


@pytest.mark.e2e
def test_a_student_of_a_study_has_a_teacher_of_its_seed(pair_files, tmp_path, capsys):
    data = tmp_path / "data" / "xwlb_brief"
    data.mkdir(parents=True)
    for split, file in (("train", 1), ("validation", 3), ("test", 3)):
        (data / f"{split}.jsonl").write_text(Path(pair_files[file]).read_text())
    settings = {"tokenizer_type": "word", "min_frequency": 1, "hidden_size": 16, "max_steps": 5}
    (tmp_path / "xwlb_brief.yaml").write_text(json.dumps(settings))
    flags = ["--study_dir", str(tmp_path), "--output_dir", str(tmp_path / "models")]
    study.main([*flags, "--data_dir", str(tmp_path / "data"), "--recipes", "l2r", "distilled", "--seeds", "3"])
    models = tmp_path / "models" / "xwlb_brief"
    assert {folder.name for folder in models.iterdir()} == {"l2r-3", "alone-own-3", "distilled-3"}
    pairs = (models / "distilled-3" / "training_pairs.jsonl").read_text().splitlines()
    assert 20 < len(pairs) <= 40
    found = json.loads((tmp_path / "results" / "xwlb_brief" / "distilled-3.json").read_text())
    own = [json.loads((models / f"{name}-3" / "seconds.json").read_text()) for name in ("alone-own", "distilled")]
    assert found["updates"] == 8 and found["seconds"] == pytest.approx(sum(own))
    assert set(found["ways"]) == set(study.ALONE)
    before = (models / "distilled-3" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "results" / "xwlb_brief" / "distilled-3.json").unlink()
    capsys.readouterr()
    study.main([*flags, "--data_dir", str(tmp_path / "data"), "--recipes", "distilled", "--seeds", "3"])
    assert (models / "distilled-3" / "model.safetensors").stat().st_mtime_ns == before
    assert "against one direction's best beam" in capsys.readouterr().out
