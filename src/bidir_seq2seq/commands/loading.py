"""A trained model and its tokenizer, as the commands load them."""

from __future__ import annotations

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    model_name_or_path: str, dtype: str = "auto", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a checkpoint without ever running code that lies in it.

    Args:
        model_name_or_path: Folder, or name on the Hub.
        dtype: Precision; `"auto"` is the checkpoint's.
        device: Where to; default: a GPU if there is one.

    Raises:
        ValueError: If the device is none, or the checkpoint needs code of its own.
    """
    model = AutoModelForSeq2SeqLM.from_pretrained(
        # Not to be asked on the terminal, where the next line of a piped document would answer.
        model_name_or_path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu"
        ) from error
    return model, AutoTokenizer.from_pretrained(model_name_or_path, trust_remote_code=False)


__all__ = ["load_model"]
