"""Loading a trained model with its tokenizer: what is damaged, missing or belongs to another model is refused by name.

transformers itself draws missing weights at random, and takes changed ones, NaN and any tokenizer as they come.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .manifest import MANIFEST_NAME, differences
from .tokenization import number_of_ids

logger = logging.get_logger(__name__)

SPECIAL_TOKENS = ("pad", "unk", "bos", "eos")


def load_model_and_tokenizer(
    model_name_or_path: str | Path, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model, in evaluation mode, and the tokenizer that it was trained with.

    Reads safetensors only.

    Args:
        model_name_or_path: A folder, or a name on the Hub.
        dtype: Precision to load the weights in; `"auto"`: the checkpoint's.
        device: Where to, such as `"cuda:1"`; default: a GPU if there is one.
        trust_remote_code: Whether to run code of the folder, if there is any.

    Raises:
        ValueError: As [`load_model`] and [`load_tokenizer`]; and if the tokenizer is not the model's, or the device is
            none.
    """
    model = load_model(model_name_or_path, dtype, trust_remote_code)
    tokenizer = load_tokenizer(model_name_or_path, trust_remote_code)
    try:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used: {why}; try --device cpu") from error
    _check_belongs(model_name_or_path, model, tokenizer)
    return model, tokenizer


def load_model(
    model_name_or_path: str | Path, dtype: str = "auto", trust_remote_code: bool = False, **changes: Any
) -> PreTrainedModel:
    """A model, in evaluation mode.

    Args:
        model_name_or_path: A folder, or a name on the Hub.
        dtype: Precision to load the weights in; `"auto"`: the checkpoint's.
        trust_remote_code: Whether to run code of the folder, if there is any.
        **changes: Of its config, such as `dropout`.

    Raises:
        ValueError: If a file of weights is damaged or not the one that was saved; if weights are missing, have no
            place in the model, or are not finite. The message names file or weights.
    """
    check_files(model_name_or_path, ".safetensors")
    # Not to be asked on the terminal about code, where the next line of a piped document would answer.
    model, found = AutoModelForSeq2SeqLM.from_pretrained(
        model_name_or_path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **changes,
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{model_name_or_path}: the files hold no {_listed(missing)}, which would be random: the folder is of "
            "another model or incomplete; copy or save it again"
        )
    if unexpected := sorted(found["unexpected_keys"]):
        raise ValueError(
            f"{model_name_or_path}: the files hold {_listed(unexpected)}, which the config has no place for: the "
            "model was trained with it, and writes worse without; take the config.json that was saved with the "
            "weights, and ask for no other parts than it has"
        )
    bad = [name for name, tensor in model.named_parameters() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(
            f"{model_name_or_path}: not finite in {_listed(bad)}: the training diverged; use an earlier checkpoint"
        )
    return model


def load_tokenizer(model_name_or_path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer, from a model's folder or one of its own.

    Args:
        model_name_or_path: A folder, or a name on the Hub.
        trust_remote_code: Whether to run code of the folder, if there is any.

    Raises:
        ValueError: If there is none, or its file is damaged or not the one that was saved.
    """
    check_files(model_name_or_path, "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:
        # The library that reads the file raises bare Exceptions; transformers asks for packages that do not help.
        raise ValueError(
            f"{model_name_or_path}: no tokenizer can be loaded from there ({str(error).strip().splitlines()[0]}): "
            "tokenizer.json and tokenizer_config.json, as they were saved with the model, must lie beside its weights"
        ) from error
    return forget_origin(tokenizer)


def forget_origin(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that, saved, does not tell how it was loaded; changed in place.

    It names no code (`auto_map`), unless that code is saved with it; and one that came from a folder is saved as what
    it was there.
    """
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    if getattr(tokenizer, "_auto_class", None) is None:
        tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def check_files(folder: str | Path, ending: str) -> None:
    """Compares a folder's files with its manifest, and looks into its weights; a name on the Hub is left alone.

    Args:
        folder: A model's folder.
        ending: Which files must be as they were saved, such as `".safetensors"`. Of the others a change is warned of:
            settings may be edited by hand.

    Raises:
        ValueError: If one is not, or is no whole safetensors file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for name, words in (differences(folder) or {}).items():
        if name.endswith((ending, MANIFEST_NAME)):
            raise ValueError(
                f"{folder / name} {words}: copy it anew or use another checkpoint; if you have replaced it on "
                f"purpose, delete {MANIFEST_NAME} beside it"
            )
        if name.endswith("config.json"):
            logger.warning_once(f"{folder / name} {words}; it is used as it is")
    for path in sorted(folder.glob("*.safetensors")) if ending == ".safetensors" else ():
        if damage := weights_damage(path):
            raise ValueError(f"{path} {damage}: copy it anew or use another checkpoint")


def weights_damage(path: Path, look_for_nan: bool = False) -> str | None:
    """What is wrong with a file of weights, in words; None if nothing is.

    Args:
        path: A safetensors file.
        look_for_nan: Whether to read all of it, and not only its table of contents.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            names = weights.keys() if look_for_nan else ()
            finite = all(bool(weights.get_tensor(name).isfinite().all()) for name in names)
    except (SafetensorError, OSError) as error:
        return f"is damaged ({error})"
    return None if finite else "holds weights that are not finite"


def _check_belongs(name: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if number_of_ids(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}: it is "
            "another model's; use the one that was saved with the model"
        )
    for token in SPECIAL_TOKENS if model.config.model_type == "bidir_seq2seq" else ():
        theirs, ours = getattr(tokenizer, f"{token}_token_id"), getattr(model.config, f"{token}_token_id")
        if theirs != ours:
            raise ValueError(
                f"{name}: the tokenizer's {token}_token_id is {theirs} and the model's {ours}: it is another model's; "
                "use the one that was saved with the model"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = [
    "check_files",
    "forget_origin",
    "load_model",
    "load_model_and_tokenizer",
    "load_tokenizer",
    "weights_damage",
]
