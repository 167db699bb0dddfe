"""The bidirectional beam search on one page, for reading: `generate` finds the same, faster.

    python examples/plain_search.py quickstart/model "function read csv (path): path is the file to read."

Two writers work on each title, one from its left end and one from its right end, each with K hypotheses. A hypothesis
does not know which one of the other writer's it will meet, so its next token is that which is likeliest on average
over all of them. Nothing is remembered: documents and all K x K pairs of hypotheses are read anew for every token.

Letters: B documents, S their length, K hypotheses of a writer, t tokens written so far, V vocabulary.
"""

import argparse
from typing import NamedTuple

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration

IMPOSSIBLE = float("-inf")


class Candidate(NamedTuple):
    """A finished title.

    Attributes:
        score: The sum of its tokens' log-probabilities, divided by their number ** length_penalty.
        ids: In reading order, without marks at its ends.
        direction: Which writer wrote it, `"l2r"` or `"r2l"`.
    """

    score: float
    ids: list[int]
    direction: str


class Writer:
    """One direction's hypotheses for all documents.

    Args:
        direction: `"l2r"` or `"r2l"`.
        marks: What is never written; the mark that ends a title comes last.
        start_id: What titles start with.
        batch_size: Documents, B.
        num_beams: Hypotheses of each, K.
        length_penalty: See [`Candidate`].
    """

    def __init__(
        self, direction: str, marks: list[int], start_id: int, batch_size: int, num_beams: int, length_penalty: float
    ):
        self.direction, self.marks, self.end_id = direction, marks, marks[-1]
        self.length_penalty = length_penalty
        self.ids = torch.full((batch_size, num_beams, 1), start_id)  # [B, K, t], best first
        self.scores = torch.full((batch_size, num_beams), IMPOSSIBLE)  # sums of log-probabilities
        self.scores[:, 0] = 0  # one to start with: K equal ones would propose the same tokens K times
        self.finished: list[list[Candidate]] = [[] for _ in range(batch_size)]  # the K best of each document
        self.open = [True] * batch_size  # whether a hypothesis may still enter them

    def weights(self) -> torch.Tensor:
        """`[B, K]`, what each hypothesis counts in a mean over all: equally much, if it exists."""
        exists = self.scores > IMPOSSIBLE
        return exists / exists.sum(1, keepdim=True)

    def write(self, probs: torch.Tensor, may_end: bool, must_end: bool) -> None:
        """Adds one token to every hypothesis, given the probabilities `[B, K, V]` of the next one."""
        log_probs = probs.log()
        log_probs[..., self.marks if not may_end else self.marks[:-1]] = IMPOSSIBLE
        num_beams, vocab_size = probs.shape[1:]
        # Each hypothesis ends in one way only, so of the best 2K at least K do not end.
        totals, flat = (self.scores[:, :, None] + log_probs).flatten(1).topk(2 * num_beams)
        tokens = flat % vocab_size
        ids = torch.cat([_select(self.ids, flat // vocab_size), tokens[:, :, None]], dim=2)
        ends = (tokens == self.end_id) | must_end
        for document in [document for document, is_open in enumerate(self.open) if is_open]:
            self._finish(document, totals[document], ids[document], ends[document])
        self.scores, order = totals.masked_fill(ends, IMPOSSIBLE).topk(num_beams)
        self.ids = _select(ids, order)
        self._close()

    def _finish(self, document: int, totals: torch.Tensor, ids: torch.Tensor, ends: torch.Tensor) -> None:
        """Keeps what has ended among a document's K best, of 2K continuations `[2K]`."""
        num_beams = self.scores.shape[1]
        found = self.finished[document]
        for place in range(num_beams):
            if ends[place] and totals[place] > IMPOSSIBLE:
                content = [index for index in ids[place, 1:].tolist() if index != self.end_id]
                content = content[::-1] if self.direction == "r2l" else content
                found.append(Candidate(self._normalised(totals[place]), content, self.direction))
        self.finished[document] = sorted(found, key=lambda title: title.score, reverse=True)[:num_beams]

    def _close(self) -> None:
        """Closes documents whose best hypothesis is no better than the last of K finished ones."""
        for document, found in enumerate(self.finished):
            is_full = len(found) == self.scores.shape[1]
            if is_full and self._normalised(self.scores[document, 0]) <= found[-1].score:
                self.open[document] = False

    def _normalised(self, total: torch.Tensor) -> float:
        length = self.ids.shape[2]
        return float(total / length**self.length_penalty)


@torch.inference_mode()
def plain_search(
    model: BidirSeq2SeqForConditionalGeneration,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_beams: int = 3,
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    length_penalty: float = 1.0,
) -> list[list[Candidate]]:
    """What `generate(decoding_direction="both")` finds.

    Args:
        model: A model of both directions, in evaluation mode.
        input_ids: `[B, S]`, padded; `attention_mask` `[B, S]` is 1 where there is a token.
        num_beams: Hypotheses of each writer, K.
        max_new_tokens, min_new_tokens: Of a title, its end included.
        length_penalty: Above 1 favours longer titles.

    Returns:
        For each document the different titles that both writers finished, 2K at most, best first.
    """
    pad, unk, bos, eos = (getattr(model.config, f"{name}_token_id") for name in ("pad", "unk", "bos", "eos"))
    size = len(input_ids), num_beams
    # What one starts with the other ends with.
    l2r = Writer("l2r", [pad, unk, bos, eos], bos, *size, length_penalty)
    r2l = Writer("r2l", [pad, unk, eos, bos], eos, *size, length_penalty)
    documents = {"input_ids": input_ids, "attention_mask": attention_mask}
    documents = {name: rows.repeat_interleave(num_beams**2, dim=0) for name, rows in documents.items()}
    for written in range(max_new_tokens):
        # Row (b, i, j) has left hypothesis i beside right hypothesis j of document b.
        pairs = (*size, num_beams, -1)
        output = model(
            **documents,
            decoder_input_ids=l2r.ids[:, :, None].expand(pairs).flatten(0, 2),
            r2l_decoder_input_ids=r2l.ids[:, None].expand(pairs).flatten(0, 2),
            use_twin=True,
        )
        probs = [logits[:, -1].float().softmax(-1).view(pairs) for logits in (output.logits, output.r2l_logits)]
        of_left, of_right = l2r.weights(), r2l.weights()
        settings = {"may_end": written >= min_new_tokens, "must_end": written + 1 == max_new_tokens}
        l2r.write(torch.einsum("bijv,bj->biv", probs[0], of_right), **settings)
        r2l.write(torch.einsum("bijv,bi->bjv", probs[1], of_left), **settings)
        if not any(l2r.open + r2l.open):
            break
    return [_ranked(left + right) for left, right in zip(l2r.finished, r2l.finished)]


def _select(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`x` `[B, M, t]` at the entries `index` `[B, K]` of its second dimension."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def _ranked(titles: list[Candidate]) -> list[Candidate]:
    """The titles, best first and each once."""
    best: dict[tuple[int, ...], Candidate] = {}
    for title in sorted(titles, key=lambda title: title.score, reverse=True):
        best.setdefault(tuple(title.ids), title)
    return list(best.values())


def main(args: list[str] | None = None) -> None:
    """Prints the titles of one text, best first; `args` instead of the process's own arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a trained model of both directions")
    parser.add_argument("text", help="document to write titles for")
    parser.add_argument("--num_beams", type=int, default=3, help="hypotheses of each writer (default 3)")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="longest title in tokens (default 32)")
    options = parser.parse_args(args)
    model = AutoModelForSeq2SeqLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    source = tokenizer([options.text], truncation=True, return_tensors="pt")
    titles = plain_search(
        model, source["input_ids"], source["attention_mask"], options.num_beams, options.max_new_tokens
    )
    for score, ids, direction in titles[0]:
        print(f"{score:7.3f}  {direction}  {tokenizer.decode(ids)}")


if __name__ == "__main__":
    main()
