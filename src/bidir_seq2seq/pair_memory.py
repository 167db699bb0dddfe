"""Similar pairs: what is known of the documents most like a new one, for a model to read beside it.

A model of a few million weights does not remember each of its pairs, but they can be looked up: behind a document
stand the titles of the most similar ones, and the model learns what to take from them (translations: Bulté and Tezcan
2019, https://aclanthology.org/P19-1175; headlines: Cao et al. 2018, https://aclanthology.org/P18-1015). Similar is
what has rare words or characters in common: BM25, of the package bm25s (Lù 2024, https://arxiv.org/abs/2407.03618).
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

import torch

from .extras import extra

# What documents are compared by, and how many of these in a row if nothing is said.
UNITS = {"word": (1, 2), "char": (2, 3)}
# What is put behind a document of each similar pair.
TEMPLATE = " | {target}"
# Stands before and behind a text: how it begins and ends is part of what it is like.
EDGE = "\n"


class PairMemory:
    """Pairs, found by what their documents are like.

    Args:
        pairs: Documents and their titles. Of a document that comes again only the first title is kept, and pairs with
            an empty side are left out.
        unit: `"word"`, what stands between spaces, or `"char"`, for Chinese and other text without them.
        ngram_sizes: How many units in a row are compared; default: 1 and 2 words, or 2 and 3 characters.
        template: What is put behind a document of each similar pair, with `{target}`, its title, and, if that is to be
            read, too, `{source}`, its document.

    Raises:
        ImportError: If bm25s is not installed.
        ValueError: On another unit, a size below 1 or that no document has, a template that is no line with
            `{target}`, or without pairs.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        unit: str = "word",
        ngram_sizes: Sequence[int] | None = None,
        template: str = TEMPLATE,
    ):
        with extra("retrieval"):
            import bm25s
        if unit not in UNITS:
            raise ValueError(f"unit={unit!r} must be one of {', '.join(UNITS)}")
        ngram_sizes = UNITS[unit] if ngram_sizes is None else ngram_sizes
        if not ngram_sizes or min(ngram_sizes) < 1:
            raise ValueError(f"ngram_sizes={list(ngram_sizes)}: name at least one, of 1 or more units in a row")
        self.unit, self.ngram_sizes, self.template = unit, tuple(ngram_sizes), _checked(template)
        titles: dict[str, str] = {}
        for source, target in pairs:
            source, target = _in_a_line(source), _in_a_line(target)
            if source and target:
                titles.setdefault(source, target)
        if not titles:
            raise ValueError("there is no pair with a document and a title to remember")
        self._pairs = list(titles.items())
        terms = [self._terms(source) for source in titles]
        if not any(terms):
            raise ValueError(f"ngram_sizes={list(ngram_sizes)}: no document is that long; name smaller ones, too")
        self._index = bm25s.BM25()
        self._index.index(terms, show_progress=False)

    def __len__(self) -> int:
        return len(self._pairs)

    def neighbors(self, text: str, num_neighbors: int = 1) -> list[tuple[str, str]]:
        """The pairs most like a text, the most similar one first; fewer where no others have anything in common.

        Never one of the same document: what a model learns from must not hold its answer, and what it reads later has
        to look the same.

        Args:
            text: A document.
            num_neighbors: How many.

        Raises:
            ValueError: If less than 1.
        """
        if num_neighbors < 1:
            raise ValueError(f"num_neighbors={num_neighbors}: ask for at least 1")
        terms = self._terms(text)
        if not terms:
            return []
        # One more, which may be the text itself. (bm25s would choose by numpy, in ten times the time of all the rest.)
        number = min(num_neighbors + 1, len(self))
        best = torch.from_numpy(self._index.get_scores(terms)).topk(number)
        ranked = zip(best.values.tolist(), best.indices.tolist())
        found = [self._pairs[place] for score, place in ranked if score > 0]
        return [pair for pair in found if pair[0] != _in_a_line(text)][:num_neighbors]

    def extend(self, text: str, num_neighbors: int = 1) -> str:
        """A text with its similar pairs behind it, as the template says; as it is where there are none.

        Args:
            text, num_neighbors: As for [`PairMemory.neighbors`].
        """
        similar = self.neighbors(text, num_neighbors)
        return text + "".join(self.template.format(source=source, target=target) for source, target in similar)

    def _terms(self, text: str) -> list[str]:
        """What a text is compared by: its n-grams in lower case, also those with its begin and its end."""
        units = text.lower().split()
        units, joint = (units, " ") if self.unit == "word" else (list("".join(units)), "")
        within = {size: [EDGE, *units, EDGE] if size > 1 and units else units for size in self.ngram_sizes}
        return [
            joint.join(row[start : start + size])
            for size, row in within.items()
            for start in range(len(row) - size + 1)
        ]


def _checked(template: str) -> str:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"template={template!r}: {error}; a brace of its own is written twice") from error
    if len(template.splitlines()) > 1 or not {"target"} <= names <= {"source", "target"}:
        raise ValueError(f"template={template!r} must be one line with {{target}}, and maybe {{source}}")
    return template


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


__all__ = ["TEMPLATE", "UNITS", "PairMemory"]
