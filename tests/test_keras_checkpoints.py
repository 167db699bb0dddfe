"""Our model against what the reference programs computed: the full golden files where they are, small ones always."""

import copy
import json
import os
import runpy
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_search import Found, reference_search, run_searches
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, LogitsProcessor

from bidir_seq2seq.keras_checkpoints import (
    build_reference_model,
    build_reference_tokenizer,
    convert_reference_checkpoint,
    read_characters,
    read_keras_weights,
)
from bidir_seq2seq.output_bidir_seq2seq import Written

SMALL = Path(__file__).parent / "golden"
FULL = Path(os.environ.get("BIDIR_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
# What each direction reads, answers, and gave each next target, by the names in the files.
SIDES = {"twin": [("yl", "pl", "tgt_l"), ("yr", "pr", "tgt_r")], "uni": [("y", "p", "tgt")]}


class Golden:
    """One program's golden files and our model with its weights."""

    def __init__(self, folder: Path, name: str):
        self.file, self.sides = folder / f"{name}.npz", SIDES[name]
        self.twin, self.small = name == "twin", folder == SMALL
        self.facts = json.loads(self.file.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(self.file) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files if not key.startswith("w:")}
        self.weights = read_keras_weights(self.file)
        self.num_heads = self.facts.get("num_attention_heads", 8)
        self.model = build_reference_model(self.weights, self.num_heads)
        self.source = torch.tensor(self.arrays["x"])

    def document(self, index: int) -> torch.Tensor:
        """`[1, S]` without padding."""
        row = self.source[index : index + 1]
        return row[row > 0][None]

    def expected_beams(self, topk: int) -> list[list[int]]:
        return [beam["ids"] for beam in self.facts["beams"] if beam["topk"] == topk]

    @property
    def top_ks(self) -> list[int]:
        return sorted({beam["topk"] for beam in self.facts["beams"]})


@pytest.fixture(scope="module", params=["small-twin", "small-uni", "full-twin", "full-uni"])
def golden(request) -> Golden:
    size, name = request.param.split("-")
    folder = SMALL if size == "small" else FULL
    if not (folder / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in {folder}: set BIDIR_GOLDEN to the folder with the full golden files")
    return Golden(folder, name)


@torch.no_grad()
def forward_probs(
    golden: Golden, source: torch.Tensor, *inputs: torch.Tensor, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Probabilities `[R, T, V]` of each direction over its inputs `[R, T]`."""
    model = copy.deepcopy(golden.model).to(dtype)
    if not golden.twin:
        return [model(input_ids=source, decoder_input_ids=inputs[0]).logits.softmax(-1)]
    output = model(input_ids=source, decoder_input_ids=inputs[0], r2l_decoder_input_ids=inputs[1], use_twin=True)
    return [output.logits.softmax(-1), output.r2l_logits.softmax(-1)]


def test_probabilities_equal_the_reference(golden):
    inputs = [golden.arrays[side[0]] for side in golden.sides]
    # The small files were computed in float64, where logarithms of the smallest probabilities agree, too.
    finest, tolerance = (torch.float64, 1e-5) if golden.small else (torch.float32, 1e-4)
    probs, precise = (
        forward_probs(golden, golden.source, *map(torch.tensor, inputs), dtype=dtype)
        for dtype in (torch.float32, finest)
    )
    for (_, probs_name, targets_name), ids, ours, exact in zip(golden.sides, inputs, probs, precise):
        unpadded = ids > 0
        expected = golden.arrays[probs_name]
        first = np.zeros(len(ids), dtype=bool)
        first[: len(expected)] = True
        assert np.abs(ours.numpy()[first] - expected)[unpadded[first]].max() <= 1e-5

        targets = torch.tensor(ids[:, 1:])
        of_targets = exact[:, :-1].gather(-1, targets[..., None])[..., 0].numpy()
        log_ratio = np.log(of_targets[unpadded[:, 1:]]) - np.log(golden.arrays[targets_name][unpadded[:, 1:]])
        assert np.abs(log_ratio).max() <= tolerance


def rerun_everything(golden: Golden, source: torch.Tensor, topk: int):
    """Next probabilities as the reference gets them: the whole network over all pairs of prefixes."""

    def next_probs(requests):
        prefixes = [np.stack(of_documents) for of_documents in zip(*(request.prefixes for request in requests))]
        orders = np.indices((topk, topk)).reshape(2, -1) if golden.twin else [np.arange(topk)]
        rows = [torch.tensor(ids[:, order]).flatten(0, 1) for ids, order in zip(prefixes, orders)]
        probs = forward_probs(golden, source.repeat_interleave(len(orders[0]), 0), *rows)
        shape = (len(source), *[topk] * len(orders), -1)
        return [p[:, -1].numpy().reshape(shape) for p in probs]

    return next_probs


@torch.no_grad()
def step_by_step(golden: Golden, source: torch.Tensor, topk: int):
    """The same from the states that our decoders keep."""
    model = golden.model
    encoded = model.get_encoder()(source)
    words = model.words(encoded)
    steps = model.model.start_steps(encoded, model.config.decoder_directions)

    @torch.no_grad()
    def next_probs(requests):
        columns = zip(*([ids[:, -1] for ids in request.prefixes] for request in requests))
        last_ids = [torch.tensor(np.array(column)) for column in columns]
        parents = [torch.tensor(np.array(column)) for column in zip(*(request.parents for request in requests))]
        started = any(request.prefixes[0].shape[1] > 1 for request in requests)
        if started:
            steps.reorder(torch.stack(parents))
        features = list(steps.step(torch.stack(last_ids)).features)
        if golden.twin:
            features[1] = features[1].transpose(1, 2)
        return [words.logits(Written(x)).softmax(-1).numpy() for x in features]

    return next_probs


def search(golden: Golden, source: torch.Tensor, topk: int, scorer) -> list[Found]:
    searches = [reference_search(len(golden.sides), topk, golden.facts["maxlen"]) for _ in source]
    return run_searches(searches, scorer(golden, source, topk))


@cache
def reference_beams(golden: Golden, topk: int) -> list[Found]:
    return search(golden, golden.source, topk, step_by_step)


def test_the_reference_search_over_our_model_finds_its_beams(golden):
    for topk in golden.top_ks:
        assert [beam.ids for beam in reference_beams(golden, topk)] == golden.expected_beams(topk)


def test_the_same_by_rerunning_everything(golden):
    # Slow on the full files, where a few documents stand for all.
    for topk in golden.top_ks[:3]:
        for index in range(len(golden.source) if golden.small else 2):
            (beam,) = search(golden, golden.document(index), topk, rerun_everything)
            assert beam.ids == golden.expected_beams(topk)[index]


class ReferenceFloor(LogitsProcessor):
    """Scores a token as the reference does, log(p + 1e-6), not log p."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return (scores.exp() + 1e-6).log()


def test_generate_finds_the_same_or_better(golden):
    """What differs is meant to: an ended title leaves the beam for a pool, and the next best takes its place.

    So no title is continued past its end, none that has ended second best is lost, and the twin reads no such
    continuation. The reference stops as soon as its best prefix ends.
    """
    if golden.small and golden.twin:
        pytest.skip("random weights: a partner's other path changes a title's score by more than its own tokens do")
    for topk in golden.top_ks:
        expected = reference_beams(golden, topk)
        output = golden.model.generate(
            input_ids=golden.source,
            num_beams=topk,
            max_length=golden.facts["maxlen"] + 1,
            logits_processor=[ReferenceFloor()],
            return_dict_in_generate=True,
            output_scores=True,
            # Greedy search warns about beam search's options.
            **({"length_penalty": None} if topk == 1 and not golden.twin else {}),
        )
        scores = getattr(output, "sequences_scores", None)
        for index, (ids, beam) in enumerate(zip(output.sequences.tolist(), expected)):
            ids = [i for i in ids if i != 0]
            # The reference notes both of a right-to-left title's marks as the end id, and an unended one lacks one.
            if ids[1:] == beam.ids[1:] or (beam.direction and ids[1:] == beam.ids):
                continue
            assert scores is not None and scores[index] >= beam.score - 1e-4, f"top-k {topk}, document {index}"


@pytest.fixture
def small_weights() -> dict[str, np.ndarray]:
    return read_keras_weights(SMALL / "twin.npz")


def assert_same_model(weights: dict[str, np.ndarray]):
    expected = build_reference_model(read_keras_weights(SMALL / "twin.npz"), num_attention_heads=2).state_dict()
    found = build_reference_model(weights, num_attention_heads=2).state_dict()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, msg=name)


def renumbered(name: str) -> str:
    """As a later model of the same session would be named, its numbers crossing 9."""
    layer, _, rest = name.partition("/")
    kind, _, number = layer.rpartition("_")
    if not number.isdigit():
        kind, number = layer, 0
    return f"{kind}_{int(number) + 7}/{rest}"


def test_layers_are_matched_by_order_not_by_number(small_weights):
    items = [(renumbered(name), array) for name, array in small_weights.items()]
    assert_same_model(dict(reversed(items)))


def test_cudnn_weights_are_read(small_weights):
    converted = {}
    for name, array in small_weights.items():
        name = name.replace("lstm_cell_2/", "backward_cu_dnnlstm/").replace("lstm_cell/", "forward_cu_dnnlstm/")
        if "lstm" in name and "bias" in name:
            array = np.concatenate([array - 1, np.ones_like(array)])
        elif "recurrent_kernel" in name:
            array = np.concatenate([gate.T for gate in np.split(array, 4, axis=1)], axis=1)
        elif "lstm" in name:
            gates = [gate.T.reshape(gate.shape) for gate in np.split(array, 4, axis=1)]
            array = np.concatenate(gates, axis=1)
        converted[name.replace("lstm_", "cu_dnnlstm_", 1) if name.startswith("lstm_") else name] = array
    assert_same_model(converted)


def test_a_missing_array_is_named(small_weights):
    del small_weights["lstm_5/lstm_cell/bias:0"]
    with pytest.raises(ValueError, match=r"'bias' .* of 'lstm' layer number 4 is missing, expected shape \(32,\)"):
        build_reference_model(small_weights, 2)


def test_a_surplus_array_is_named(small_weights):
    small_weights["dense_40/kernel:0"] = np.zeros((2, 2))
    with pytest.raises(ValueError, match="'dense_40/kernel:0' has no place"):
        build_reference_model(small_weights, 2)


def test_a_misshapen_array_is_named(small_weights):
    small_weights["attention_2/kernel_1:0"] = small_weights["attention_2/kernel_1:0"][:8]
    with pytest.raises(ValueError, match=r"'attention_2/kernel_1:0' has the shape \(8, 4\), expected \(16, 4\)"):
        build_reference_model(small_weights, 2)


@pytest.mark.parametrize("kind", ["embedding", "lstm_2", "attention"])
def test_a_missing_layer_is_named(small_weights, kind):
    with pytest.raises(ValueError, match="missing|attention layers"):
        build_reference_model({n: w for n, w in small_weights.items() if n.split("/")[0] != kind}, 2)


def test_heads_must_divide_the_width(small_weights):
    with pytest.raises(ValueError, match="num_attention_heads=3"):
        build_reference_model(small_weights, 3)


def write_h5(path: Path, weights: dict[str, np.ndarray], inside: str = "/") -> None:
    """As Keras 2's `save_weights` does."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        root = file.require_group(inside)
        layers = sorted({name.split("/")[0] for name in weights} | {"input_1"})
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            names = [name for name in weights if name.split("/")[0] == layer]
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = weights[name]


@pytest.mark.parametrize("inside", ["/", "model_weights"])
def test_h5_weights_are_read(tmp_path, small_weights, inside):
    write_h5(tmp_path / "weights.h5", small_weights, inside)
    assert_same_model(read_keras_weights(tmp_path / "weights.h5"))


def test_h5_of_another_kind_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(1)
    with pytest.raises(ValueError, match="not in Keras 2's format"):
        read_keras_weights(tmp_path / "weights.h5")


def test_h5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py is not installed.*bidir_seq2seq\[reference\]"):
        read_keras_weights(tmp_path / "weights.h5")


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a .npz nor a .h5"):
        read_keras_weights(tmp_path / "model.bin")
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match="no array named 'w:"):
        read_keras_weights(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "table, message",
    [
        ({"a": 4, "b": 6}, "must be 4 to 5"),
        ({"a": 4, "bc": 5}, "'bc' .* not one character"),
        ([1, 2], "no table"),
        ({"a": "4"}, "no table"),
    ],
)
def test_bad_character_tables_are_refused(tmp_path, table, message):
    (tmp_path / "table.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        read_characters(tmp_path / "table.json")


def test_character_tables_in_all_three_forms(tmp_path):
    char2id = {"a": 4, " ": 5}
    for table in (char2id, {"char2id": char2id}, [{"a": 40, " ": 50}, {"4": "a", "5": " "}, char2id]):
        (tmp_path / "table.json").write_text(json.dumps(table))
        assert read_characters(tmp_path / "table.json") == char2id


def test_tokenizer_reads_as_the_reference_does():
    tokenizer = build_reference_tokenizer({"天": 4, " ": 5, "\n": 6})
    assert tokenizer("天 地\n天")["input_ids"] == [4, 5, 1, 6, 4]
    assert tokenizer.decode([2, 4, 5, 4, 3, 0], skip_special_tokens=True) == "天 天"
    assert len(tokenizer("天" * 500, truncation=True)["input_ids"]) == 400


def test_a_converted_checkpoint_loads(golden, tmp_path):
    convert_reference_checkpoint(golden.file, tmp_path, num_attention_heads=golden.num_heads)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(golden.facts["documents"], padding=True, truncation=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], golden.source)

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for name, parameter in golden.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], parameter), name
    assert model.generation_config.num_beams == 3 and model.generation_config.length_penalty == 0


def test_the_script_converts(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[1] / "scripts" / "convert_reference_checkpoint.py"
    arguments = [str(script), str(SMALL / "uni.npz"), str(tmp_path), "--num_attention_heads", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert str(tmp_path) in capsys.readouterr().out


def test_characters_of_another_model_are_refused(tmp_path):
    (tmp_path / "table.json").write_text(json.dumps({"a": 4}))
    with pytest.raises(ValueError, match="holds 1 characters, but the weights know 8"):
        convert_reference_checkpoint(SMALL / "uni.npz", tmp_path / "out", tmp_path / "table.json", 2)
    with pytest.raises(ValueError, match="no character table"):
        convert_reference_checkpoint(SMALL / "uni.npz", tmp_path / "out", tmp_path / "absent.json", 2)


@pytest.mark.parametrize("name", ["weights.npz", "plain.npz", "objects.npz", "weights.h5", "table.json"])
def test_a_file_that_is_another_is_named(name, tmp_path):
    path = tmp_path / name
    read = read_characters if path.suffix == ".json" else read_keras_weights
    with pytest.raises(FileNotFoundError, match=f"{name}': there is no such file"):
        read(path)
    if name == "plain.npz":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif name == "objects.npz":
        np.savez(path, **{"w:a": np.array([{}], dtype=object)})
    else:
        path.write_text("{no archive")
    with pytest.raises(ValueError, match=f"{name}' (cannot be read as|is no) .*is it the right file"):
        read(path)
