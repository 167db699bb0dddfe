"""The training loss from features: projection to the vocabulary, prior and cross-entropy, a block of rows at a time.

The logits of a batch are by far its largest tensor. Here they exist for one block of target tokens at a time, in one
buffer, which also becomes their gradient: they never travel through main memory, and padding has none. The idea of
taking the gradient in the forward pass is Hsu et al. 2024 (Liger Kernel, https://arxiv.org/abs/2410.10989).

Letters: P target tokens, B documents, V vocabulary, E embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .kernels_bidir_seq2seq import FixedLinear, addmm_, is_direct

# Rows of one block: enough for efficient products, and few enough for the block to stay in a processor's cache.
BLOCK_ROWS = {"cpu": 256}
DEFAULT_BLOCK_ROWS = 4096
# For fewer rows in all it takes longer to lay a weight out than that saves.
MANY_ROWS = 1024


def projected_cross_entropy(
    features: torch.Tensor,
    weight: torch.Tensor,
    base: torch.Tensor,
    documents: torch.LongTensor,
    targets: torch.LongTensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum over P tokens of the cross-entropy of `features @ weight.T + base[documents]`.

    Equal to `F.cross_entropy(..., reduction="sum")` of those logits, without keeping them. Products run in the dtype
    of `features` (or of autocast), everything else in float32.

    Args:
        features: `[P, E]`.
        weight: `[V, E]`.
        base: `[B, V]`, what is added to the logits of each document's tokens: bias and prior.
        documents: `[P]`, which document each token belongs to.
        targets: `[P]`, its id.
        label_smoothing: Share of the target distribution that is spread evenly over the vocabulary.

    Returns:
        The sum in nats, a float32 scalar.
    """
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(device_type, enabled=False):
        return _ProjectedCrossEntropy.apply(
            features, weight.to(features.dtype), base.float(), documents, targets, label_smoothing
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


def _logits_in_blocks(features, weight, base, documents) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows at a time and their logits `[n, V]`, float32, in a buffer that the next ones overwrite."""
    block_rows = BLOCK_ROWS.get(features.device.type, DEFAULT_BLOCK_ROWS)
    buffer = base.new_empty(min(block_rows, len(features)), weight.shape[0])
    project = FixedLinear(weight, lay_out=_is_worth_laying_out(weight, features))
    for start in range(0, len(features), block_rows):
        rows = slice(start, start + block_rows)
        x = features[rows]
        logits = buffer[: len(x)]
        torch.index_select(base, 0, documents[rows], out=logits)
        if x.dtype == logits.dtype and not project.is_packed:
            addmm_(logits, x, weight.T)
        else:
            logits.add_(project(x))
        yield rows, logits


def _is_worth_laying_out(weight: torch.Tensor, features: torch.Tensor) -> bool:
    return len(features) >= MANY_ROWS or not is_direct(features, weight.T)


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, base, documents, targets, label_smoothing):
        wants_grad = any(ctx.needs_input_grad[:3])
        vocab_size = weight.shape[0]
        total = base.new_zeros(())
        if wants_grad:
            grad_features, grad_base = torch.empty_like(features), torch.zeros_like(base)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            project_back = FixedLinear(weight.T, lay_out=_is_worth_laying_out(weight, features))
        buffer = None
        for rows, logits in _logits_in_blocks(features, weight, base, documents):
            x, target, document = features[rows], targets[rows, None], documents[rows]
            buffer = torch.empty_like(logits) if buffer is None else buffer
            probs = torch.softmax(logits, dim=1, out=buffer[: len(x)])
            # The largest probability is at least 1 / V, so its logarithm is always safe.
            log_total = logits.amax(1) - probs.amax(1).log()
            wanted = logits.gather(1, target).squeeze(1) * (1 - label_smoothing)
            if label_smoothing:
                wanted += logits.mean(1) * label_smoothing
            total += (log_total - wanted).sum()
            if not wants_grad:
                continue
            # From here on the probabilities are the gradient in the logits.
            probs.scatter_add_(1, target, probs.new_full(target.shape, label_smoothing - 1))
            if label_smoothing:
                probs.sub_(label_smoothing / vocab_size)
            grad_base.index_add_(0, document, probs)
            grad = probs.to(x.dtype)
            grad_features[rows] = project_back(grad)
            if x.dtype != grad_weight.dtype:
                grad_weight.add_(grad.T @ x)
            else:
                addmm_(grad_weight, grad.T, x)
        if wants_grad:
            ctx.save_for_backward(grad_features, grad_weight.to(weight.dtype), grad_base)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_total):
        grads = (grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None)


__all__ = ["projected_cross_entropy", "projected_log_probs"]
