"""The reference's beam search, rule by rule, flaw included, over any model that can score prefixes."""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

# The first prefix id of left-to-right, and of right-to-left.
STARTS = (2, 3)
# Which ids a direction may write, in the order in which the reference lines their probabilities up. It then numbers
# both lists from 3, so a right-to-left end (2) is noted, and read by the model, as a 3.
END = 3
COLUMNS = (lambda size: list(range(3, size)), lambda size: [2, *range(4, size)])


class Found(NamedTuple):
    """The search's answer.

    Attributes:
        ids: In reading order, with what stands at both ends.
        score: Sum of log(p + 1e-6).
        direction: 0 for left-to-right, 1 for right-to-left.
    """

    ids: list[int]
    score: float
    direction: int


class Request(NamedTuple):
    """What the search wants to know the next ids of.

    Attributes:
        prefixes: Each direction's `[K, t]`.
        parents: For each prefix the one `[K]` that it continues; at the first step itself.
    """

    prefixes: list[np.ndarray]
    parents: list[np.ndarray]


def reference_search(num_directions: int, topk: int, max_steps: int) -> Generator[Request, list[np.ndarray], Found]:
    """Searches for one document.

    It yields requests and is sent each direction's probabilities of the next id: `[K, V]` of the only direction, or
    `[K, K, V]` of two, entry `[i, j]` for left-to-right prefix i beside right-to-left prefix j.

    Args:
        num_directions: 1 (left-to-right) or 2.
        topk: Beams per direction, K.
        max_steps: Most ids that are written.
    """
    prefixes = [np.full((topk, 1), start) for start in STARTS[:num_directions]]
    parents = [np.arange(topk)] * num_directions
    scores = [np.zeros(topk, np.float32)] * num_directions
    for step in range(max_steps):
        for direction, probs in enumerate((yield Request(list(prefixes), list(parents)))):
            probs = probs[..., COLUMNS[direction](probs.shape[-1])]
            if num_directions == 2:
                probs = probs.mean(1 - direction)
            log_probs = np.log(probs + 1e-6)
            proposals = log_probs.argsort(axis=1)[:, -topk:]
            # All prefixes are equal at first, so one of them proposes for all.
            origins = np.repeat(np.arange(topk if step else 1), topk)
            columns = proposals[: topk if step else 1].flatten()
            totals = scores[direction][origins] + log_probs[origins, columns]
            kept = np.argsort(totals)[-topk:] if step else np.arange(topk)
            parents[direction] = origins[kept]
            scores[direction] = totals[kept]
            prefixes[direction] = np.column_stack([prefixes[direction][origins[kept]], columns[kept] + 3])
        for direction, (ids, score) in enumerate(zip(prefixes, scores)):
            # An ended prefix that is not the best stays, and is continued past its end.
            if ids[score.argmax(), -1] == END and score.max() >= max(s.max() for s in scores):
                return _found(prefixes, scores, direction)
    return _found(prefixes, scores, int(np.argmax([score.max() for score in scores])))


def run_searches(
    searches: list[Generator[Request, list[np.ndarray], Found]],
    next_probs: Callable[[list[Request]], list[np.ndarray]],
) -> list[Found]:
    """Runs searches in step.

    Args:
        searches: One for each of B documents.
        next_probs: Takes B requests, of which those of ended searches stay as they were; returns each direction's
            probabilities, `[B, K, V]` or `[B, K, K, V]`.
    """
    found = [None] * len(searches)
    requests = [next(search) for search in searches]
    while None in found:
        probs = next_probs(requests)
        for index, search in enumerate(searches):
            if found[index] is None:
                try:
                    requests[index] = search.send([p[index] for p in probs])
                except StopIteration as end:
                    found[index] = end.value
    return found


def _found(prefixes: list[np.ndarray], scores: list[np.ndarray], direction: int) -> Found:
    best = scores[direction].argmax()
    ids = prefixes[direction][best].tolist()
    return Found(ids[::-1] if direction else ids, float(scores[direction][best]), direction)
