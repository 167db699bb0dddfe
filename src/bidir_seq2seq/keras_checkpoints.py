"""Reads what the published Keras programs ("the reference") have learned into an ordinary checkpoint.

Letters: V vocabulary, E embedding size, H hidden size, A heads * head size. A Keras kernel is the transpose of a torch
weight; both order an LSTM's gates input, forget, cell, output.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from .configuration_bidir_seq2seq import REFERENCE_PRESET, BidirSeq2SeqConfig
from .extras import extra
from .modeling_bidir_seq2seq import BidirSeq2SeqForConditionalGeneration
from .tokenization import SPECIAL_TOKENS, as_fast_tokenizer, char_backend

MAX_SOURCE_LENGTH = 400
# The search as the programs call it: three beams, summed log-probabilities, 64 steps after the start id.
GENERATION_DEFAULTS = {"num_beams": 3, "length_penalty": 0.0, "max_length": 65}


class Slot(NamedTuple):
    """A place for one Keras array, free of the numbers that Keras gives layers.

    Attributes:
        kind: Kind of layer, such as `"lstm"`.
        layer: Which layer of this kind, in order of creation.
        leaf: Kind of array, such as `"recurrent_kernel"`.
        index: Which array of this kind in the layer.
    """

    kind: str
    layer: int
    leaf: str
    index: int = 0  # type: ignore[assignment] # hides tuple's own method, which nobody asks a slot for


def convert_reference_checkpoint(
    weights_file: str | Path,
    output_dir: str | Path,
    characters_file: str | Path | None = None,
    num_attention_heads: int = REFERENCE_PRESET["num_attention_heads"],
) -> None:
    """Writes a folder that `AutoModelForSeq2SeqLM` and `AutoTokenizer` load.

    Args:
        weights_file: As for [`read_keras_weights`].
        output_dir: Folder for config, weights, generation config and tokenizer; made if it is not there.
        characters_file: As for [`read_characters`]; default: the `.json` file beside the weights.
        num_attention_heads: Heads of every attention layer, which the weights do not tell.

    Raises:
        ValueError: If weights or characters are not those of a reference program.
    """
    characters_file = Path(characters_file or Path(weights_file).with_suffix(".json"))
    if not characters_file.is_file():
        raise ValueError(f"no character table at {str(characters_file)!r}: name the JSON file that holds char2id")
    char2id = read_characters(characters_file)
    model = build_reference_model(read_keras_weights(weights_file), num_attention_heads)
    if model.config.vocab_size != len(SPECIAL_TOKENS) + len(char2id):
        raise ValueError(
            f"{str(characters_file)!r} holds {len(char2id)} characters, but the weights know "
            f"{model.config.vocab_size - len(SPECIAL_TOKENS)}: name the table the weights were trained with"
        )
    model.save_pretrained(output_dir)
    build_reference_tokenizer(char2id).save_pretrained(output_dir)


def read_keras_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads arrays by their Keras names.

    Args:
        path: A `.npz` file with keys `w:<Keras name>`, or a `.h5` file of Keras 2's `save_weights` or `save`.

    Returns:
        Names such as `"lstm_2/lstm_cell/kernel:0"` and their arrays.

    Raises:
        ValueError: If the file is of another kind.
        ImportError: If a `.h5` file is given and h5py is not installed.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with _named(path, "numpy's archive of arrays"), np.load(path) as arrays:
            weights = {name.removeprefix("w:"): arrays[name] for name in arrays.files if name.startswith("w:")}
        if not weights:
            raise ValueError(f"{str(path)!r} holds no array named 'w:<Keras name>': is it the right file?")
        return weights
    if path.suffix in (".h5", ".hdf5"):
        return _read_h5(path)
    raise ValueError(
        f"{str(path)!r} is neither a .npz nor a .h5 file: save the Keras model by save_weights('NAME.h5')"
    )


def read_characters(path: str | Path) -> dict[str, int]:
    """Reads the character table.

    Args:
        path: JSON: `{character: id}`, an object with such a table under `char2id`, or the programs' own
            `seq2seq_config.json`, a list that ends in the table.

    Raises:
        ValueError: If there is no table, or its ids are not 4, 5, 6, ...
    """
    with _named(Path(path), "JSON"):
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    table = table[-1] if isinstance(table, list) and table else table
    table = table.get("char2id", table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or not all(isinstance(index, int) for index in table.values()):
        raise ValueError(f"{str(path)!r} holds no table of characters and ids: give char2id as JSON")
    first = len(SPECIAL_TOKENS)
    if sorted(table.values()) != list(range(first, first + len(table))):
        raise ValueError(f"the ids in {str(path)!r} must be {first} to {first + len(table) - 1}, each of them once")
    if longer := [text for text in table if len(text) != 1]:
        raise ValueError(f"{longer[0]!r} in {str(path)!r} is not one character: is it the table of another model?")
    return table


def build_reference_tokenizer(char2id: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """Makes a stock fast tokenizer that, like the reference, adds no marks to a text.

    Args:
        char2id: Characters and their ids, 4 and up.
    """
    special = {token: index for index, token in enumerate(SPECIAL_TOKENS.values())}
    backend = char_backend({**special, **char2id})
    backend.add_special_tokens(list(special))
    return as_fast_tokenizer(backend, MAX_SOURCE_LENGTH)


def build_reference_model(
    weights: Mapping[str, np.ndarray], num_attention_heads: int = REFERENCE_PRESET["num_attention_heads"]
) -> BidirSeq2SeqForConditionalGeneration:
    """Makes a model of the twin or the unidirectional program from its arrays; sizes are read off their shapes.

    Args:
        weights: Arrays by Keras name. Layers may bear any numbers, as long as later ones have higher numbers.
        num_attention_heads: Heads of every attention layer.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If an array is missing, surplus or of a wrong shape; the message names it and the shape expected.
    """
    arrays = _arrange(weights)
    config = _reference_config(arrays, num_attention_heads)
    model = BidirSeq2SeqForConditionalGeneration(config).eval()
    model.load_state_dict(_state_dict(arrays, model), strict=True)
    model.generation_config.update(**GENERATION_DEFAULTS)
    return model


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Says which file is not what it should be; the libraries that read it do not.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r}: there is no such file")
    try:
        yield
    except (OSError, TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError, BadZipFile) as error:
        raise ValueError(f"{str(path)!r} cannot be read as {kind} ({error}): is it the right file?") from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(f"{str(path)!r} is no {kind}: is it the right file?") from error


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    with extra("reference"):
        import h5py

    with _named(path, "Keras 2's HDF5"), h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError(
                f"{str(path)!r} is not in Keras 2's format: save the model there by save_weights('NAME.h5')"
            )
        weights = {}
        for layer in map(_text, root.attrs["layer_names"]):
            for name in map(_text, root[layer].attrs["weight_names"]):
                full_name = name if name.startswith(f"{layer}/") else f"{layer}/{name}"
                weights[full_name] = root[layer][name][()]
    return weights


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _split_number(name: str) -> tuple[str, int]:
    """`"lstm_10"` to `("lstm", 10)`; the first of its kind may have no number."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, 0)


def _arrange(weights: Mapping[str, np.ndarray]) -> dict[Slot, tuple[str, np.ndarray]]:
    """Sorts arrays `name: array` into slots by the order of their numbers."""
    layers: dict[tuple[str, int], dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for name, array in weights.items():
        layer, *path = name.split(":")[0].split("/")
        kind, number = _split_number(layer)
        # The programs use "lstm" and "cu_dnnlstm" alike.
        kind = "lstm" if kind.endswith("lstm") else kind
        stems = [_split_number(part) for part in path]
        # A bidirectional layer may name its halves forward_ and backward_, which the alphabet would swap.
        order = ["backward" in name, [part for _, part in stems], name]
        layers[kind, number][stems[-1][0] if stems else ""].append((order, name, np.asarray(array)))

    numbers: dict[str, list[int]] = defaultdict(list)
    for kind, number in sorted(layers):
        numbers[kind].append(number)
    if "dense" in numbers:
        vocab_shape = next((w.shape[::-1] for n, w in weights.items() if n.startswith("embedding")), None)
        numbers["dense"].sort(key=lambda n: [w.shape for _, _, w in layers["dense", n]["kernel"]] != [vocab_shape])
    arrays = {
        Slot(kind, numbers[kind].index(number), leaf, index): (name, array)
        for (kind, number), leaves in layers.items()
        for leaf, found in leaves.items()
        for index, (_, name, array) in enumerate(sorted(found, key=lambda entry: entry[0]))
    }
    return _from_cudnn(arrays)


def _from_cudnn(arrays: dict[Slot, tuple[str, np.ndarray]]) -> dict[Slot, tuple[str, np.ndarray]]:
    """Turns `CuDNNLSTM` arrays, known by their 8H biases, into those of a plain `LSTM`."""
    arrays = dict(arrays)
    for slot, (name, bias) in list(arrays.items()):
        kernel_slot, recurrent_slot = slot._replace(leaf="kernel"), slot._replace(leaf="recurrent_kernel")
        if slot.leaf != "bias" or recurrent_slot not in arrays or kernel_slot not in arrays:
            continue
        (kernel_name, kernel), (recurrent_name, recurrent) = arrays[kernel_slot], arrays[recurrent_slot]
        if kernel.ndim != 2 or recurrent.ndim != 2 or bias.shape != (8 * recurrent.shape[0],):
            continue
        # CuDNN keeps each gate's matrix in the other memory order.
        gates = [gate.T.reshape(gate.shape, order="F") for gate in np.split(kernel, 4, axis=1)]
        arrays[kernel_slot] = kernel_name, np.concatenate(gates, axis=1)
        gates = [gate.T for gate in np.split(recurrent, 4, axis=1)]
        arrays[recurrent_slot] = recurrent_name, np.concatenate(gates, axis=1)
        arrays[slot] = name, np.add(*np.split(bias, 2))
    return arrays


def _reference_config(arrays: Mapping[Slot, tuple[str, np.ndarray]], num_attention_heads: int) -> BidirSeq2SeqConfig:
    def matrix(slot: Slot, meaning: str) -> tuple[int, int]:
        if slot not in arrays:
            raise ValueError(f"the {slot.kind} layer's {slot.leaf} {meaning} is missing: are these all the weights?")
        name, array = arrays[slot]
        if array.ndim != 2:
            raise ValueError(f"{name!r} has the shape {array.shape}, expected {meaning}")
        return array.shape

    vocab_size, embedding_size = matrix(Slot("embedding", 0, "embeddings"), "[V, E]")
    hidden_size, _ = matrix(Slot("lstm", 0, "recurrent_kernel"), "[H, 4H]")
    _, attention_size = matrix(Slot("attention", 0, "kernel"), "[H, A]")
    num_attentions = len({slot.layer for slot in arrays if slot.kind == "attention"})
    directions = {1: "l2r", 4: "both"}.get(num_attentions)
    if directions is None:
        raise ValueError(
            f"found {num_attentions} attention layers, expected 1 (unidirectional program) or 4 (twin program)"
        )
    if num_attention_heads < 1 or attention_size % num_attention_heads:
        raise ValueError(
            f"num_attention_heads={num_attention_heads} does not divide the attention's width of {attention_size}"
        )
    return BidirSeq2SeqConfig.reference(
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        attention_head_size=attention_size // num_attention_heads,
        decoder_directions=directions,
    )


def _state_dict(
    arrays: Mapping[Slot, tuple[str, np.ndarray]], model: BidirSeq2SeqForConditionalGeneration
) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    plan = _plan(model.config)
    shapes = {slot: _keras_shape(slot, tuple(state[parameter].shape)) for slot, parameter in plan.items()}
    if surplus := sorted(arrays[slot][0] for slot in arrays.keys() - plan.keys()):
        raise ValueError(
            f"{surplus[0]!r} has no place in the model ({len(surplus)} such arrays): is it another program's?"
        )
    for slot, parameter in plan.items():
        if slot not in arrays:
            raise ValueError(
                f"array {slot.leaf!r} (number {slot.index + 1}) of {slot.kind!r} layer number {slot.layer + 1} is "
                f"missing, expected shape {shapes[slot]}: it becomes {parameter}"
            )
    for slot, parameter in plan.items():
        name, array = arrays[slot]
        if array.shape != shapes[slot]:
            raise ValueError(f"{name!r} has the shape {array.shape}, expected {shapes[slot]}: it becomes {parameter}")
        array = array.T if "kernel" in slot.leaf else array
        state[parameter] = torch.tensor(np.ascontiguousarray(array), dtype=torch.float32).view(state[parameter].shape)
    # Keras has one bias where torch has two that are added.
    return {name: torch.zeros_like(value) if name.endswith("bias_hh_l0") else value for name, value in state.items()}


def _keras_shape(slot: Slot, shape: tuple[int, ...]) -> tuple[int, ...]:
    if slot.kind == "scale_shift":
        return (1, 1, *shape)
    return shape[::-1] if "kernel" in slot.leaf else shape


def _plan(config: BidirSeq2SeqConfig) -> dict[Slot, str]:
    """Which parameter each array becomes."""
    plan = {
        Slot("embedding", 0, "embeddings"): "model.encoder.embed_tokens.weight",
        Slot("scale_shift", 0, "log_scale"): "prior.log_scale",
        Slot("scale_shift", 0, "shift"): "prior.shift",
    }

    def add_dense(kind: str, layer: int, module: str, index: int = 0, bias: bool = True) -> None:
        plan[Slot(kind, layer, "kernel", index)] = f"{module}.weight"
        if bias:
            plan[Slot(kind, layer, "bias", index)] = f"{module}.bias"

    def add_lstm(kind: str, layer: int, module: str, index: int = 0) -> None:
        plan[Slot(kind, layer, "kernel", index)] = f"{module}.weight_ih_l0"
        plan[Slot(kind, layer, "recurrent_kernel", index)] = f"{module}.weight_hh_l0"
        plan[Slot(kind, layer, "bias", index)] = f"{module}.bias_ih_l0"

    for layer in range(config.encoder_layers):
        module = f"model.encoder.layers.{layer}"
        plan[Slot("layer_normalization", layer, "gamma")] = f"{module}.norm.weight"
        plan[Slot("layer_normalization", layer, "beta")] = f"{module}.norm.bias"
        add_lstm("our_bidirectional", layer, f"{module}.forward_rnn", 0)
        add_lstm("our_bidirectional", layer, f"{module}.backward_rnn", 1)

    both = config.decoder_directions == "both"
    attentions = ("twin_attention", "source_attention") if both else ("source_attention",)
    add_dense("dense", 0, "lm_head")
    for direction, decoder in enumerate(("model.decoder", "model.r2l_decoder") if both else ("model.decoder",)):
        add_dense("dense", 1 + direction, f"{decoder}.feature")
        for layer in range(config.decoder_layers):
            add_lstm("lstm", direction * config.decoder_layers + layer, f"{decoder}.rnns.{layer}")
        for layer in range(config.decoder_layers + 1):
            number = direction * (config.decoder_layers + 1) + layer
            for index, net in enumerate(("shift.0", "shift.2", "scale.0", "scale.2")):
                add_dense("self_modulated_layer_normalization", number, f"{decoder}.norms.{layer}.{net}", index)
        for layer, attention in enumerate(attentions):
            for index, projection in enumerate(("query", "key", "value")):
                number = direction * len(attentions) + layer
                add_dense("attention", number, f"{decoder}.{attention}.{projection}", index, bias=False)
    return plan


__all__ = [
    "Slot",
    "build_reference_model",
    "build_reference_tokenizer",
    "convert_reference_checkpoint",
    "read_characters",
    "read_keras_weights",
]
