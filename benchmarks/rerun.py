"""The bidirectional search as the published Keras programs do it: everything is computed anew for each token."""

import sys
from pathlib import Path

import torch

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from plain_search import Candidate, plain_search


def rerun_everything(
    model: BidirSeq2SeqForConditionalGeneration,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    length: int,
    num_beams: int,
) -> list[list[Candidate]]:
    """Writes exactly `length` tokens, as every title is to have its full length; see `plain_search`.

    Args:
        model: A twin model.
        input_ids: `[B, S]`, padded; `attention_mask` `[B, S]` is 1 where there is a token.
        length: Tokens to write.
        num_beams: Hypotheses a direction, K.

    Returns:
        For each document the titles of both directions, best first.
    """
    return plain_search(model, input_ids, attention_mask, num_beams, max_new_tokens=length, min_new_tokens=length)
