"""Titles put together of two: the beginning of one goes on as the other does from two words on that both have.

What writes from the left knows beginnings best, and what writes from the right ends (Liu et al. 2016, "Agreement on
Target-bidirectional Neural Machine Translation", whose candidates are such). Of one direction both are its own.

Letters: B documents, M titles of each, K of them that lend a part, G splices of each, L length of a sequence with its
start id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch.nn import functional as F
from transformers import LogitsProcessorList

from .output_bidir_seq2seq import IMPOSSIBLE
from .proposals_bidir_seq2seq import TOKEN_DIMS, Pool, merged
from .search_bidir_seq2seq import forbidden_tokens, select

# So many best titles of each side lend their parts, and so many splices become candidates.
LENDERS, SPLICES = 8, 16
# So many words in common make a seam: of a single one, or of a piece of a word, titles come that nobody would write.
SEAM = 2
# So many pairs of words are compared at a time: of long titles there are many.
COMPARED_TOGETHER = 1 << 24
# Of so many of the best it is looked at whether they may be written, which takes a row of the vocabulary for each.
LOOKED_AT = 64


@dataclass
class Splices:
    """What is put together of which titles of a pool.

    Attributes:
        heads, tails: `[B, G]`, which title each begins as, and which it ends as.
        kept, skipped: `[B, G]`, tokens of the head before the seam, and of the tail that it leaves out; the start id
            is not counted.
        exists: `[B, G]`, false where a document has fewer.
    """

    heads: torch.Tensor
    tails: torch.Tensor
    kept: torch.Tensor
    skipped: torch.Tensor
    exists: torch.Tensor

    def at(self, places: torch.Tensor) -> Splices:
        """Some of them, `[B, n]`."""
        return Splices(*(getattr(self, field.name).gather(1, places) for field in fields(self)))

    def those_that_exist(self) -> Splices:
        """Without columns that no document needs."""
        number = int(self.exists.sum(1).amax())
        return self.at(self.exists.long().argsort(dim=1, descending=True, stable=True)[:, :number])

    def sequences(self, sequences: torch.Tensor, pad_id: int) -> torch.Tensor:
        """Their tokens `[B, G, L]`, of titles `[B, M, L]` in reading order."""
        start = select(sequences, self.heads)[:, :, :1]
        return torch.cat([start, self._joined(sequences[:, :, 1:], pad_id)], dim=2)

    def pool(self, pool: Pool, pad_id: int) -> Pool:
        """They as a pool: each token with what was recorded of it; the score is the mean of both titles' own, and the
        writer that of the beginning."""
        scores = (select(pool["own_scores"], self.heads) + select(pool["own_scores"], self.tails)) / 2
        found = {
            "sequences": self.sequences(pool["sequences"], pad_id),
            "own_scores": scores.masked_fill(~self.exists, IMPOSSIBLE),
            "from_right": select(pool["from_right"], self.heads),
        }
        for name in pool.keys() & TOKEN_DIMS.keys() - found.keys():
            values = pool[name].movedim(TOKEN_DIMS[name], 2)
            found[name] = self._joined(values, -1 if name == "beam_indices" else 0).movedim(2, TOKEN_DIMS[name])
        return found

    def _joined(self, values: torch.Tensor, fill: int) -> torch.Tensor:
        """`[B, G, T, ...]`, of something that each token of a pool's titles has, `[B, M, T, ...]`."""
        size = values.shape[2]
        places = torch.arange(size, device=values.device).expand(*self.heads.shape, size)
        is_head = places < self.kept[..., None]
        titles = torch.where(is_head, self.heads[..., None], self.tails[..., None])
        places = torch.where(is_head, places, places - self.kept[..., None] + self.skipped[..., None])
        tokens = (titles * size + places.clamp(max=size - 1)).flatten(1)
        found = select(values.flatten(1, 2), tokens).unflatten(1, places.shape[1:])
        return found.where((places < size).view(*places.shape, *[1] * (found.dim() - 3)), fill)


def splices_of(
    sequences: torch.Tensor,
    exists: torch.Tensor,
    heads: torch.Tensor,
    tails: torch.Tensor,
    pad_id: int,
) -> Splices:
    """All new titles that begin as one of some titles and end as one of others.

    The seam is where words begin that both have in common, two at least. No splice is longer than the longest title of
    its document.

    Args:
        sequences: `[B, M, L]`, in reading order, with their ends, padded.
        exists: `[B, M]`, which of them are titles.
        heads, tails: `[B, K]`, which of them lend beginnings and ends; -1 for none.
        pad_id: What stands after the end.
    """
    titles = sequences[:, :, 1:].masked_fill(~exists[..., None], pad_id)
    left, right = (
        select(titles, side.clamp(min=0)).masked_fill((side < 0)[..., None], pad_id) for side in (heads, tails)
    )
    document, head, tail, kept, skipped = _seams(left, right, pad_id).unbind(1)
    # The n-th of its document, which come one after the other.
    counts = document.bincount(minlength=len(titles))
    place = torch.arange(len(document), device=document.device) - (counts.cumsum(0) - counts)[document]
    columns = (heads[document, head], tails[document, tail], kept, skipped, torch.ones_like(kept, dtype=torch.bool))
    shape = (len(titles), int(counts.amax()))
    found = Splices(*(x.new_zeros(shape).index_put_((document, place), x) for x in columns))
    lengths = (titles != pad_id).sum(2)
    found.exists &= found.kept + lengths.gather(1, found.tails) - found.skipped <= lengths.amax(1, keepdim=True)
    words = found.sequences(sequences, pad_id)[:, :, 1:].masked_fill(~found.exists[..., None], pad_id)
    found.exists &= _are_first(torch.cat([titles, words], dim=1))[:, titles.shape[1] :]
    return found.those_that_exist()


def _seams(left: torch.Tensor, right: torch.Tensor, pad_id: int) -> torch.Tensor:
    """`[n, 5]`: of each seam its document, which of `left` and of `right` `[B, K, T]` it joins, and where in each."""
    together = max(1, COMPARED_TOGETHER // (left[0].numel() * right[0].numel()))
    found = []
    for first in range(0, len(left), together):
        heads, tails = left[first : first + together], right[first : first + together]
        same = (heads[:, :, None, :, None] == tails[:, None, :, None]) & (heads != pad_id)[:, :, None, :, None]
        # Any other place within the words in common gives the same title.
        seams = same.clone()
        seams[..., 1:, 1:] &= ~same[..., :-1, :-1]
        for further in range(1, SEAM):
            seams &= F.pad(same[..., further:, further:], (0, further, 0, further))
        places = seams.nonzero()
        places[:, 0] += first
        found.append(places)
    return torch.cat(found)


def _are_first(titles: torch.Tensor) -> torch.Tensor:
    """`[B, n]`, which of titles `[B, n, T]` are the first such ones of their documents."""
    documents = torch.arange(len(titles), device=titles.device)[:, None, None].expand(*titles.shape[:2], 1)
    _, kinds = torch.cat([documents, titles], dim=2).flatten(0, 1).unique(dim=0, return_inverse=True)
    places = torch.arange(len(kinds), device=titles.device)
    first = torch.full_like(places, len(places)).scatter_reduce(0, kinds, places, "amin")
    return (first[kinds] == places).view(titles.shape[:2])


def with_splices(
    pool: Pool,
    shared: Callable[[torch.Tensor], torch.Tensor],
    obeys: Callable[[torch.Tensor], torch.Tensor],
    pad_id: int,
    end_ids: torch.Tensor,
) -> Pool:
    """A pool, and those splices of its best titles that are best.

    Args:
        pool: What was proposed, with `own_scores`. Beginnings are of what was written from the left, ends of what was
            from the right; of one direction both are its own.
        shared: From sequences `[B, n, L]` to what each has in common with what a title might be, `[B, n]`.
        obeys: Of sequences `[B, n, L]` those that may be written, `[B, n]`.
        pad_id: What stands after the end.
        end_ids: `[n]`, of tokens that end a title. One that was cut before its end lends nothing.
    """
    sequences, exists, from_right = pool["sequences"], pool["own_scores"] > IMPOSSIBLE, pool["from_right"]
    worth, is_both = shared(sequences), (from_right != from_right[:, :1]).any()
    has_ended = exists & torch.isin(sequences[:, :, 1:], end_ids).any(2)
    lenders: list[torch.Tensor] = []
    for side in (~from_right, from_right):
        own = has_ended & (side | ~is_both)
        own &= _are_first(sequences.masked_fill(~own[..., None], pad_id))
        best, places = _best(worth.masked_fill(~own, IMPOSSIBLE), LENDERS)
        lenders.append(places.masked_fill(best <= IMPOSSIBLE, -1))
    heads, tails = lenders
    found = splices_of(sequences, exists, heads, tails, pad_id)
    if not found.exists.shape[1]:
        return pool
    worth = shared(found.sequences(sequences, pad_id)).masked_fill(~found.exists, IMPOSSIBLE)
    found = found.at(_best(worth, LOOKED_AT)[1])
    found.exists &= obeys(found.sequences(sequences, pad_id))
    # They stay in their order.
    places = (~found.exists).long().argsort(dim=1, stable=True)[:, :SPLICES]
    return merged([pool, found.at(places).pool(pool, pad_id)], pad_id)


def _best(scores: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of scores `[B, n]`, at most so many, and their places; of equal ones always the first."""
    scores, places = scores.sort(dim=1, descending=True, stable=True)
    return scores[:, :number], places[:, :number]


def may_be_written(
    sequences: torch.Tensor, processors: LogitsProcessorList, vocab_size: int, pad_id: int
) -> torch.Tensor:
    """`[n]`: whether processors let each token of sequences `[n, L]`, in writing order, follow those before it.

    Args:
        sequences: Padded after their ends; as many of each document, one after the other, by which some processors go.
        processors: Of log-probabilities.
        vocab_size: V, or more where words outside the vocabulary have ids of their own.
        pad_id: What stands after the end.
    """
    let = torch.ones_like(sequences, dtype=torch.bool)
    for length in range(1, sequences.shape[1]):
        token, forbidden = sequences[:, length], forbidden_tokens(processors, length)
        if forbidden is not None:
            let[:, length] = ~torch.isin(token, forbidden.to(token.device))
        else:
            scores = torch.zeros(len(token), vocab_size, device=token.device)
            processed = processors(cast(torch.LongTensor, sequences[:, :length]), cast(torch.FloatTensor, scores))
            # With `remove_invalid_values` the smallest number stands for minus infinity.
            least = torch.finfo(processed.dtype).min
            let[:, length] = processed.gather(1, token[:, None]).squeeze(1) > least
    return (let | (sequences == pad_id)).all(1)


__all__ = ["LENDERS", "SPLICES", "Splices", "may_be_written", "splices_of", "with_splices"]
