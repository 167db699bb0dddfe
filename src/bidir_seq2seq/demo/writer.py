"""What the page asks of a model: titles in every direction, with scores and times, and the search as it went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..loading import load_model_and_tokenizer
from ..pipeline import MAX_UNKNOWN_SHARE, SOURCES, BidirSeq2SeqPipeline
from ..proposals_bidir_seq2seq import searches_of
from ..search_history import SearchHistory, has_twin_search, record_search
from ..unknown_words import decode

# What lies beyond is not even looked at.
MAX_CHARACTERS = 20_000
MAX_BEAMS = 4
# Each way ranks its own titles; only the model's default may rank them otherwise.
OWN_RANKING = {"joint_rescoring": False}


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
        search: The search of both directions; `None` for a model without any ([`has_twin_search`]).
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
        self.pipeline = BidirSeq2SeqPipeline(model=model, tokenizer=tokenizer, device=model.device)
        self.num_beams = min(model.generation_config.num_beams or MAX_BEAMS, MAX_BEAMS)

    @classmethod
    def from_folder(cls, folder: str | Path) -> DemoWriter:
        """Loads a trained model and its tokenizer.

        Raises:
            ValueError: If the folder has no model.
        """
        if Path(folder).is_dir() and not (Path(folder) / "config.json").exists():
            raise ValueError(f"{folder} holds no model (config.json): name the output_dir of train.py")
        return cls(*load_model_and_tokenizer(str(folder)))

    def write(self, text: str) -> Result:
        """Titles of a text, with what has to be said of it; an empty text has none."""
        result = Result()
        if len(text) > MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS]
            result.notices.append(("too_long", {"limit": MAX_CHARACTERS}))
        # Surrogates without a partner are no characters.
        text = text.encode("utf-8", "ignore").decode("utf-8")
        if not text.strip():
            result.notices.append(("empty", {}))
            return result
        encoded = self.pipeline.preprocess(text)
        if bool(encoded["truncated"]):
            result.notices.append(("cut", {"read": int(encoded["tokens"])}))
        share = int(encoded["unknown"]) / max(int(encoded["tokens"]), 1)
        if share > MAX_UNKNOWN_SHARE:
            result.notices.append(("unknown", {"share": share}))
        directions = self.model.config.decoder_directions
        for direction in ("l2r", "r2l", "both") if directions == "both" else (directions,):
            own = {"decoding_direction": direction, "proposals": searches_of(self.model.config, direction)}
            result.written.append(self._generate(direction, encoded, self.num_beams, **own, **OWN_RANKING))
        # With all its beams: fewer might write another title.
        result.written.append(self._generate("default", encoded, self.model.generation_config.num_beams or 1))
        if has_twin_search(self.model.config):
            result.search, _ = record_search(self.model, self.tokenizer, text, num_beams=self.num_beams, **OWN_RANKING)
        return result

    def _generate(self, system: str, encoded: dict[str, Any], num_beams: int, **kwargs: Any) -> Written:
        start = time.perf_counter()
        output = self.model.generate(
            **{name: encoded[name].to(self.model.device) for name in SOURCES if name in encoded},
            num_beams=num_beams,
            num_return_sequences=min(num_beams, MAX_BEAMS),
            return_dict_in_generate=True,
            **kwargs,
        )
        milliseconds = 1000 * (time.perf_counter() - start)
        words, size = encoded.get("words", []), self.model.config.vocab_size
        texts = [decode(self.tokenizer, ids, words, size).strip() for ids in output.sequences.tolist()]
        scores = getattr(output, "sequences_scores", None)
        found: dict[str, float] = {}
        for text, score in zip(texts, [0.0] * len(texts) if scores is None else scores.tolist()):
            found.setdefault(text, score)
        return Written(system, list(found.items()), milliseconds)


__all__ = ["MAX_CHARACTERS", "DemoWriter", "Result", "Written"]
