"""The bidirectional search as the published Keras programs do it: everything is computed anew for each token."""

import torch

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration


@torch.inference_mode()
def rerun_everything(
    model: BidirSeq2SeqForConditionalGeneration,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor,
    length: int,
    num_beams: int,
) -> tuple[torch.LongTensor, torch.LongTensor]:
    """Writes exactly `length` tokens, reading documents and all pairs of prefixes anew for each token.

    Args:
        model: A twin model.
        input_ids: `[B, S]`, padded; `attention_mask` `[B, S]` is 1 where there is a token.
        length: Tokens to write.
        num_beams: Hypotheses a direction, K.

    Returns:
        The left-to-right and the right-to-left hypotheses, each `[B, K, 1 + length]` in writing order and best first;
        the first token is the direction's start.
    """
    batch_size = len(input_ids)
    l2r = torch.full((batch_size, num_beams, 1), model.config.bos_token_id)
    r2l = torch.full((batch_size, num_beams, 1), model.config.eos_token_id)
    # One hypothesis to start with: K equal ones would propose the same tokens K times.
    l2r_scores = torch.full((batch_size, num_beams), float("-inf"))
    l2r_scores[:, 0] = 0
    r2l_scores = l2r_scores
    pairs = (batch_size, num_beams, num_beams, -1)
    for _ in range(length):
        output = model(
            input_ids=input_ids.repeat_interleave(num_beams**2, 0),
            attention_mask=attention_mask.repeat_interleave(num_beams**2, 0),
            decoder_input_ids=l2r[:, :, None].expand(pairs).flatten(0, 2),
            r2l_decoder_input_ids=r2l[:, None].expand(pairs).flatten(0, 2),
            use_twin=True,
        )
        l2r, l2r_scores = _extend(l2r, l2r_scores, output.logits[:, -1].softmax(-1).view(pairs).mean(2))
        r2l, r2l_scores = _extend(r2l, r2l_scores, output.r2l_logits[:, -1].softmax(-1).view(pairs).mean(1))
    return l2r, r2l


def _extend(prefixes: torch.Tensor, scores: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best K continuations of prefixes `[B, K, t]` with scores `[B, K]`; tokens' probabilities are `[B, K, V]`."""
    log_probs = probs.log()
    # Marks are not written: every title is to have its full length.
    log_probs[..., :4] = float("-inf")
    vocab_size = probs.shape[-1]
    totals, flat = (scores[:, :, None] + log_probs).flatten(1).topk(prefixes.shape[1])
    parents = (flat // vocab_size)[:, :, None].expand(prefixes.shape)
    return torch.cat([prefixes.gather(1, parents), (flat % vocab_size)[:, :, None]], dim=2), totals
