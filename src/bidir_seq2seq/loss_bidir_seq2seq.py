"""The training loss from features: projection to the vocabulary, prior and cross-entropy, a block of rows at a time.

The logits of a batch are by far its largest tensor. Here they exist for one block of target tokens at a time, in one
buffer, which also becomes their gradient: they never travel through main memory, and padding has none. The idea of
taking the gradient in the forward pass is Hsu et al. 2024 (Liger Kernel, https://arxiv.org/abs/2410.10989).

A model that copies mixes its softmax with copies target by target; the gradient of a mixture's logarithm is the
softmax's own, weighted by the share that the vocabulary has in the target's probability.

Letters: P target tokens, B documents, V vocabulary, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .kernels_bidir_seq2seq import FixedLinear, addmm_, block_size, product_dtype, without_autocast


def projected_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor,
    documents: torch.LongTensor,
    targets: torch.LongTensor,
    label_smoothing: float = 0.0,
    copied: torch.Tensor | None = None,
    generated: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over P tokens of the cross-entropy of `features @ weight.T + base[documents]`.

    Equal to `F.cross_entropy(..., reduction="sum")` of those logits, without keeping them. Products run in the dtype
    of `features` (or of autocast), everything else in float32. Of a model that copies, a target's probability is
    `copied + generated * softmax(logits)[target]`. Smoothing is of the softmax, and only of its share in that: what
    a model copies it does not have to find in its vocabulary, even a little.

    Args:
        features: `[P, E]`.
        weight: `[V, E]`.
        base: `[B, V]`, what is added to the logits of each document's tokens: bias and prior.
        documents: `[P]`, which document each token belongs to.
        targets: `[P]`, its id; V and above (only to be copied) with `copied`.
        label_smoothing: Share of the target distribution that is spread evenly over the vocabulary; of a target that
            the softmax has only a share in, as small a share of it.
        copied: `[P]`, the probability that a copy gives the target.
        generated: `[P]`, the probability of no copy.
        weights: `[P]`, float32, how much each token counts in the sum; may be negative. Default: 1.

    Returns:
        The sum in nats, a float32 scalar.
    """
    dtype = product_dtype(features)
    features, weight = features.to(dtype), weight.to(dtype)
    if copied is not None:
        # Logarithms and quotients of both are taken.
        tiny = torch.finfo(torch.float32).tiny
        copied, generated = copied.float().clamp(min=tiny), generated.float().clamp(min=tiny)
    with without_autocast(features):
        return _ProjectedCrossEntropy.apply(
            features,
            weight.to(features.dtype),
            base.float(),
            documents,
            targets,
            label_smoothing,
            copied,
            generated,
            weights,
        )


@torch.no_grad()
def projected_log_probs(
    features: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor,
    documents: torch.LongTensor,
    targets: torch.LongTensor,
) -> torch.Tensor:
    """Log-probability of each of P targets, `[P]`, float32: arguments as above, without gradients."""
    log_probs = base.new_empty(len(features), dtype=torch.float32)
    for rows, logits in _logits_in_blocks(features, weight, base.float(), documents):
        log_probs[rows] = logits.log_softmax(1).gather(1, targets[rows, None]).squeeze(1)
    return log_probs


def _logits_in_blocks(
    features: torch.Tensor, weight: torch.Tensor, base: torch.Tensor, documents: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows at a time and their logits `[n, V]`, float32, in a buffer that the next ones overwrite."""
    block_rows = block_size(features)
    buffer = base.new_empty(min(block_rows, len(features)), weight.shape[0])
    project = FixedLinear(weight, num_rows=len(features))
    for start in range(0, len(features), block_rows):
        rows = slice(start, start + block_rows)
        x = features[rows]
        logits = buffer[: len(x)]
        torch.index_select(base, 0, documents[rows], out=logits)
        project.add_to(logits, x)
        yield rows, logits


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        base: torch.Tensor,
        documents: torch.Tensor,
        targets: torch.LongTensor,
        label_smoothing: float,
        copied: torch.Tensor | None,
        generated: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        wants_grad = any(ctx.needs_input_grad)
        vocab_size = weight.shape[0]
        total = base.new_zeros(())
        if wants_grad:
            grad_features, grad_base = torch.empty_like(features), torch.zeros_like(base)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            project_back = FixedLinear(weight.T, num_rows=len(features))
        grad_copied = grad_generated = None
        if copied is not None:
            grad_copied, grad_generated = torch.empty_like(copied), torch.empty_like(generated)
        is_known = (targets < vocab_size)[:, None]
        targets = targets.clamp(max=vocab_size - 1)[:, None]
        buffer = None
        for rows, logits in _logits_in_blocks(features, weight, base, documents):
            x, target, document = features[rows], targets[rows], documents[rows]
            counts = 1.0 if weights is None else weights[rows]
            buffer = torch.empty_like(logits) if buffer is None else buffer
            probs = torch.softmax(logits, dim=1, out=buffer[: len(x)])
            # The largest probability is at least 1 / V, so its logarithm is always safe.
            log_total = logits.amax(1) - probs.amax(1).log()
            wanted = logits.gather(1, target).squeeze(1) - log_total
            # The share of the vocabulary in a target's probability: all of it, or what copies leave.
            share = torch.ones_like(wanted)
            if copied is not None:
                wanted, share = _mix(wanted.where(is_known[rows, 0], float("-inf")), copied[rows], generated[rows])
            smoothing = label_smoothing * share
            if copied is not None:
                grad_generated[rows] = counts * (smoothing - 1) * share / generated[rows]
                grad_copied[rows] = counts * (smoothing - 1) * (1 - share) / copied[rows]
            total -= (counts * (1 - smoothing) * wanted).sum()
            if label_smoothing:
                total -= (counts * smoothing * (logits.mean(1) - log_total)).sum()
            if not wants_grad:
                continue
            # From here on the probabilities are the gradient in the logits.
            known = (1 - smoothing) * share
            if copied is not None:
                probs.mul_((known + smoothing)[:, None])
            probs.scatter_add_(1, target, -known[:, None])
            if label_smoothing:
                probs.sub_((smoothing / vocab_size)[:, None])
            if weights is not None:
                probs.mul_(counts[:, None])
            grad_base.index_add_(0, document, probs)
            grad = probs.to(x.dtype)
            grad_features[rows] = project_back(grad)
            if x.dtype != grad_weight.dtype:
                grad_weight.add_(grad.T @ x)
            else:
                addmm_(grad_weight, grad.T, x)
        if wants_grad:
            grads = grad_features, grad_weight.to(weight.dtype), grad_base
            ctx.save_for_backward(*grads, grad_copied, grad_generated)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads[:3], None, None, None, *grads[3:], None)


def _mix(log_probs: torch.Tensor, copied: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the mixture and the vocabulary's share in each, `[n]`."""
    of_vocabulary = generated.log() + log_probs
    mixed = torch.logaddexp(of_vocabulary, copied.log())
    return mixed, (of_vocabulary - mixed).exp()


__all__ = ["projected_cross_entropy", "projected_log_probs"]
