"""The `"bidir-seq2seq"` pipeline: titles for documents, in batches, with what a caller wants to know of each."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Subset
from tqdm.auto import tqdm
from transformers import Pipeline
from transformers.utils import logging

from .charset import encoding_problem
from .encoders_bidir_seq2seq import PIECE_INPUTS, pieces_of, places_of, readable
from .loading import forget_origin
from .output_bidir_seq2seq import IMPOSSIBLE
from .unknown_words import TitleCollator, can_extend, decode, extend_ids, normalizer_of

logger = logging.get_logger(__name__)

# What the model is told of documents, where `preprocess` gives it.
SOURCES = ("input_ids", "attention_mask", "extended_input_ids", *PIECE_INPUTS)
# With a larger share of unknown tokens, documents are probably of a kind that the model has not learned.
MAX_UNKNOWN_SHARE = 0.1


class BidirSeq2SeqPipeline(Pipeline):
    """Writes titles: `pipeline("bidir-seq2seq", model=...)`, once `bidir_seq2seq` is imported.

    Takes what every pipeline takes: `model`, `tokenizer`, `device`, `batch_size`, `num_workers`. The arguments of a
    call may be given here too and then hold for every call. The model is put in evaluation mode.

    ```python
    write = pipeline("bidir-seq2seq", model="my_model", batch_size=32)
    write(["First article ...", "Second article ..."], num_beams=3)
    # [[{'generated_text': 'First title'}], [{'generated_text': 'Second title'}]]
    ```
    """

    _pipeline_calls_generate = True
    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()

    def __call__(self, inputs: Any, progress: bool = False, **kwargs: Any) -> Any:
        """Writes titles for documents.

        An empty document gets one empty title, and a literal special token in a document is text. Once a call the log
        says how many documents were cut, and if many of their tokens are unknown.

        Args:
            inputs: A document, which is a string; or a list (any sequence) of them, worked through in batches of
                similar length; or a generator or `torch.utils.data.Dataset` of them, such as transformers'
                `KeyDataset`, worked through in its order while the result is consumed.
            progress: Whether to show a progress bar over a list.
            batch_size (`int`): Documents per `generate` call; default: 1.
            num_workers (`int`): Processes that tokenize; default: 0, this one.
            max_source_length (`int`): Tokens of a document that are read; default: what the tokenizer says.
            return_details (`bool`): Whether to tell more of a title than its text; default: no.
            **kwargs: As for `generate`: `num_beams`, `num_return_sequences`, `decoding_direction`, ...

        Returns:
            For a document its `num_return_sequences` titles, best first; for a list such a list for each document, in
            the given order; for a generator or dataset an iterable of them. A title is a dictionary with the key
            `generated_text` and, with `return_details`, `score` (what it was ranked by, a length-normalised
            log-probability or what `ranking` says; `None` where nothing was ranked), `direction` (which wrote it,
            `"l2r"` or `"r2l"`; `None` for an empty document) and `truncated` (whether the document was cut).

        Raises:
            ValueError: If a document is not a string (naming which), or as `generate` does.
        """
        if isinstance(inputs, str):
            return self([inputs], progress=progress, **kwargs)[0]
        if hasattr(inputs, "tolist"):
            # An array of numpy, or a column of pandas.
            inputs = inputs.tolist()
        if not isinstance(inputs, Sequence):
            return super().__call__(inputs, **kwargs)
        documents = list(inputs)
        for index, document in enumerate(documents):
            _check_is_text(f"document {index}", document)
        # Similar lengths pad less. Longest first: what does not fit into memory fails at once.
        order = sorted(range(len(documents)), key=lambda index: len(documents[index]), reverse=True)
        by_length: Subset[str] = Subset(documents, order)  # type: ignore[arg-type] # a list will do
        written = super().__call__(by_length, **kwargs)
        titles = dict(zip(order, list(tqdm(written, desc="Writing titles", disable=not progress))))
        return [titles[index] for index in range(len(documents))]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model and tokenizer, for the installed package to load.

        transformers' own method would add this file and mark the folder as one whose code has to be trusted.

        Args:
            save_directory: Folder to write to.
            **kwargs: As for `save_pretrained` of a model.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        forget_origin(self.tokenizer).save_pretrained(save_directory, **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> _TitleStream:
        """As every pipeline's, and keeps the account of the call's documents."""
        report = _SourceReport(preprocess_params.get("max_source_length") or self.tokenizer.model_max_length)
        titles = super().get_iterator(
            inputs,
            num_workers,
            batch_size,
            preprocess_params,
            forward_params,
            {**postprocess_params, "report": report},
        )
        return _TitleStream(titles, inputs, report)

    def _sanitize_parameters(
        self, max_source_length: int | None = None, return_details: bool | None = None, **generate_kwargs: Any
    ) -> tuple[dict, dict, dict]:
        preprocess_params: dict[str, Any] = {}
        postprocess_params: dict[str, Any] = {}
        forward_params = generate_kwargs
        if max_source_length is not None:
            if max_source_length < 2:
                raise ValueError(
                    f"max_source_length={max_source_length} leaves no room for a token beside the end token: "
                    "use at least 2"
                )
            preprocess_params["max_source_length"] = max_source_length
        if return_details is not None:
            forward_params["return_details"] = postprocess_params["return_details"] = return_details
        return preprocess_params, forward_params, postprocess_params

    def preprocess(self, document: str, max_source_length: int | None = None) -> dict[str, torch.Tensor]:
        """Tokenizes one document.

        Args:
            document: Its text.
            max_source_length: Tokens of it that are read; default: what the tokenizer says.

        Returns:
            `input_ids` and `attention_mask`, `[1, S]`, a masked pad id for an empty document; and, each `[1]`, whether
            it was `truncated`, and how many `tokens` of it are read and `unknown`; for a model that copies also
            `extended_input_ids` `[1, S]` and the `words` that they stand for, and for a pretrained encoder what
            [`encode_sources`] gives.

        Raises:
            ValueError: If it is not a string.
        """
        _check_is_text("a document", document)
        limit = max_source_length or self.tokenizer.model_max_length
        copies = getattr(self.model.config, "use_copy", False) and can_extend(self.tokenizer)
        source_tokenizer = getattr(self.model, "source_tokenizer", None)
        whole, with_places = document, copies or source_tokenizer is not None
        if source_tokenizer is not None:
            document = readable(source_tokenizer, document)
        # Somebody's "[END]" is text, not an end.
        settings = {"split_special_tokens": True, "verbose": False, "return_offsets_mapping": with_places}
        encoding = self.tokenizer([document if document.strip() else ""], **settings)
        ids = encoding["input_ids"][0] if document.strip() else []
        truncated = len(ids) > limit or len(document) < len(whole)
        if len(ids) > limit:
            encoding = self.tokenizer([document], truncation=True, max_length=limit, **settings)
            ids = encoding["input_ids"][0]
        extended: dict[str, Any] = {}
        if copies:
            # Words that the vocabulary does not have can be copied all the same.
            unk_id, vocab_size = self.tokenizer.unk_token_id, self.model.config.vocab_size
            with_words: list[int] = []
            words: list[str] = []
            if ids:
                normalize = normalizer_of(self.tokenizer)
                with_words, words = extend_ids(encoding, 0, document, unk_id, vocab_size, normalize=normalize)
            extended = {"extended_input_ids": torch.tensor([with_words or [self.tokenizer.pad_token_id]])}
            extended["words"] = words
        if source_tokenizer is not None:
            places = places_of(encoding["offset_mapping"][0], ids, self.tokenizer.eos_token_id)
            pieces = pieces_of(source_tokenizer, document, places or [(0, 0)])
            extended |= {name: torch.tensor([row]) for name, row in pieces.items()}
        return extended | {
            "input_ids": torch.tensor([ids or [self.tokenizer.pad_token_id]]),
            "attention_mask": torch.tensor([[1] * len(ids) or [0]]),
            "truncated": torch.tensor([truncated]),
            "tokens": torch.tensor([len(ids)]),
            "unknown": torch.tensor([ids.count(self.tokenizer.unk_token_id)]),
        }

    def batch(
        self, documents: Sequence[str], max_source_length: int | None = None
    ) -> tuple[dict[str, torch.Tensor], list[Sequence[str]]]:
        """What `generate` needs of a few documents, none of them empty, in their order.

        Args:
            documents: Their texts.
            max_source_length: As for [`preprocess`].

        Returns:
            `input_ids` and `attention_mask`, `[B, S]`, and what else the model reads; and for each document the words
            that its ids from V on stand for, for [`unknown_words.decode`].
        """
        encoded: list[dict[str, Any]] = [self.preprocess(document, max_source_length) for document in documents]
        rows = [{name: row[name][0].tolist() for name in SOURCES if name in row} for row in encoded]
        batch = TitleCollator(self.tokenizer)(rows)
        inputs = {name: batch[name].to(self.model.device) for name in rows[0]}
        return inputs, [row.get("words", ()) for row in encoded]

    def _forward(self, model_inputs: dict, return_details: bool = False, **generate_kwargs: Any) -> dict:
        """Adds the n titles of each of B documents: `sequences` `[B, n, L]`, `scores` and `from_right` `[B, n]`."""
        settings = self._get_set_generation_params(self._prepare_generate_kwargs(generate_kwargs))
        direction = settings.get("decoding_direction") or getattr(self.model.config, "decoder_directions", "l2r")
        sources = {name: model_inputs.pop(name) for name in SOURCES if name in model_inputs}
        if "extended_input_ids" in sources:
            # Batches are padded with zeros.
            extended, is_token = sources["extended_input_ids"], sources["attention_mask"].bool()
            sources["extended_input_ids"] = extended.where(is_token, self.tokenizer.pad_token_id)
        if any(model_inputs.get("words", ())) and {"streamer", "stop_strings"} & {*settings, *generate_kwargs}:
            logger.warning_once(
                "A streamer and stop_strings read titles without the words that are outside the vocabulary; what is "
                "returned has them."
            )
        # Empty documents never reach the model.
        has_text = sources["attention_mask"].any(1)
        outputs = {"has_text": has_text, **model_inputs}
        if has_text.any():
            written = self.model.generate(
                **{name: ids[has_text] for name, ids in sources.items()},
                **self._prepare_generate_kwargs(
                    generate_kwargs,
                    return_dict_in_generate=True,
                    # Other models tell what they ranked by only together with the scores of every step.
                    output_scores=return_details and not hasattr(self.model.generation_config, "decoding_direction"),
                ),
            )
            directions = getattr(written, "directions", None) or [direction] * len(written.sequences)
            from_right = torch.tensor([name == "r2l" for name in directions], device=has_text.device)
            scores = getattr(written, "sequences_scores", None)
            for name, values in (("sequences", written.sequences), ("scores", scores), ("from_right", from_right)):
                outputs[name] = None if values is None else _spread(values, has_text)
        return outputs

    def postprocess(
        self, model_outputs: dict, return_details: bool = False, report: _SourceReport | None = None
    ) -> list[dict]:
        """One document's titles as the caller gets them.

        Args:
            model_outputs: As `forward` returns it, for one document.
            return_details: Whether to tell more of a title than its text.
            report: The account in which the document is entered.

        Returns:
            A dictionary for each title, best first.
        """
        if report is not None:
            report.add(**{name: int(model_outputs[name]) for name in ("truncated", "tokens", "unknown")})
        written: Iterable[tuple[str, float | None, str | None]] = [("", None, None)]
        if model_outputs["has_text"]:
            words, vocab_size = model_outputs.get("words", ()), self.model.config.vocab_size
            texts = [decode(self.tokenizer, ids.tolist(), words, vocab_size) for ids in model_outputs["sequences"][0]]
            scores = [None] * len(texts) if model_outputs["scores"] is None else model_outputs["scores"][0].tolist()
            directions = ["r2l" if from_right else "l2r" for from_right in model_outputs["from_right"][0]]
            written = [title for title in zip(texts, scores, directions) if title[1] != IMPOSSIBLE]
            # All were cut: the first is as good as any.
            written = written or [(texts[0], None, directions[0])]
        if not return_details:
            return [{"generated_text": text} for text, _, _ in written]
        truncated = bool(model_outputs["truncated"])
        return [
            {"generated_text": text, "score": score, "direction": direction, "truncated": truncated}
            for text, score, direction in written
        ]


@dataclass
class _SourceReport:
    """What became of the documents of one call, of which at most `limit` tokens are read."""

    limit: int
    documents: int = 0
    truncated: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, truncated: int, tokens: int, unknown: int) -> None:
        self.documents += 1
        self.truncated += truncated
        self.tokens += tokens
        self.unknown += unknown

    def log(self) -> None:
        if self.truncated:
            logger.warning(
                f"{self.truncated} of {self.documents} documents are longer than {self.limit} tokens: their tails "
                "are not read"
            )
        share = self.unknown / max(self.tokens, 1)
        if share > MAX_UNKNOWN_SHARE:
            logger.warning(
                f"{share:.0%} of the documents' tokens are unknown to the model: titles may make little sense"
            )


class _TitleStream:
    """The titles of one call, document by document; after the last one the account is logged."""

    def __init__(self, titles: Iterable[list[dict]], inputs: Any, report: _SourceReport):
        self.titles, self.inputs, self.report = titles, inputs, report

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[list[dict]]:
        yield from self.titles
        self.report.log()


def _check_is_text(name: str, document: object) -> None:
    if not isinstance(document, str):
        raise ValueError(
            f"{name} is {reprlib.repr(document)}, which is not text: give a string, or strings in a list, "
            "generator or KeyDataset"
        )
    if problem := encoding_problem(document):
        raise ValueError(f"{name} holds half a sign, {reprlib.repr(document)}: {problem}")


def _spread(values: torch.Tensor, rows: torch.BoolTensor) -> torch.Tensor:
    """`values` `[M * n, ...]` of the M rows that are true in `rows` `[B]` to `[B, n, ...]`, zeros in the others."""
    values = values.unflatten(0, (int(rows.sum()), -1))
    spread = values.new_zeros(len(rows), *values.shape[1:])
    spread[rows] = values
    return spread


__all__ = ["MAX_UNKNOWN_SHARE", "SOURCES", "BidirSeq2SeqPipeline"]
