"""What the page asks of a model: titles in every direction, with scores and times, and the search as it went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..pipeline import MAX_UNKNOWN_SHARE
from ..search_history import SearchHistory, search_history

# What lies beyond is not even looked at.
MAX_CHARACTERS = 20_000
MAX_BEAMS = 4


@dataclass
class Written:
    """What one way of writing found.

    Attributes:
        system: `"l2r"`, `"r2l"`, `"both"` or `"default"`.
        titles: Titles and what they were ranked by, best first.
        milliseconds: How long it took.
    """

    system: str
    titles: list[tuple[str, float]]
    milliseconds: float


@dataclass
class Result:
    """What there is to show of a text.

    Attributes:
        written: By each way of writing.
        search: The search of both directions; `None` for a model of one.
        notices: Names of `WORDS` and what they are filled with.
    """

    written: list[Written] = field(default_factory=list)
    search: SearchHistory | None = None
    notices: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class DemoWriter:
    """Writes titles for one visitor after the other.

    Args:
        model: A trained model; put in evaluation mode.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.num_beams = min(model.generation_config.num_beams or MAX_BEAMS, MAX_BEAMS)

    @classmethod
    def from_folder(cls, folder: str | Path) -> DemoWriter:
        """Loads a trained model and its tokenizer.

        Raises:
            ValueError: If the folder has no model.
        """
        if Path(folder).is_dir() and not (Path(folder) / "config.json").exists():
            raise ValueError(f"{folder} holds no model (config.json): name the output_dir of train.py")
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        return cls(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))

    def write(self, text: str) -> Result:
        """Titles of a text, with what has to be said of it; an empty text has none."""
        result = Result()
        if len(text) > MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS]
            result.notices.append(("too_long", {"limit": MAX_CHARACTERS}))
        # Surrogates without a partner are no characters.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        settings = {"split_special_tokens": True, "verbose": False}
        ids = self.tokenizer(text, **settings)["input_ids"] if text.strip() else []
        if not ids:
            result.notices.append(("empty", {}))
            return result
        limit = self.tokenizer.model_max_length
        if len(ids) > limit:
            result.notices.append(("cut", {"read": limit, "all": len(ids)}))
            ids = self.tokenizer(text, truncation=True, max_length=limit, **settings)["input_ids"]
        share = ids.count(self.tokenizer.unk_token_id) / len(ids)
        if share > MAX_UNKNOWN_SHARE:
            result.notices.append(("unknown", {"share": share}))
        input_ids: Any = torch.tensor([ids])
        directions = self.model.config.decoder_directions
        for direction in ("l2r", "r2l", "both") if directions == "both" else (directions,):
            result.written.append(self._generate(direction, input_ids, decoding_direction=direction, **self._own))
        result.written.append(self._generate("default", input_ids))
        if directions == "both":
            output = self.model.generate(
                input_ids=input_ids,
                num_beams=self.num_beams,
                return_dict_in_generate=True,
                output_attentions=True,
                decoding_direction="both",
                **self._own,
            )
            result.search = search_history(self.model, self.tokenizer, output.history, input_ids[0])
        return result

    @property
    def _own(self) -> dict[str, Any]:
        """Each direction ranks its own titles; only the model's default may rank them otherwise."""
        return {"joint_rescoring": False}

    def _generate(self, system: str, input_ids: torch.LongTensor, **kwargs: Any) -> Written:
        start = time.perf_counter()
        output = self.model.generate(
            input_ids=input_ids,
            num_beams=self.num_beams,
            num_return_sequences=self.num_beams,
            return_dict_in_generate=True,
            **kwargs,
        )
        milliseconds = 1000 * (time.perf_counter() - start)
        texts = self.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        scores = getattr(output, "sequences_scores", None)
        found: dict[str, float] = {}
        for text, score in zip(texts, [0.0] * len(texts) if scores is None else scores.tolist()):
            found.setdefault(text, score)
        return Written(system, list(found.items()), milliseconds)


__all__ = ["MAX_CHARACTERS", "DemoWriter", "Result", "Written"]
