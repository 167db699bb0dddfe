"""How decoding time grows with the title's length: our bidirectional search, and rerunning everything at each step.

    python benchmarks/decode_linear.py
    python benchmarks/decode_linear.py --lengths 8 32 128 --num_beams 5 --output decode_linear.json

Both work on one model of the published programs' sizes with random weights, on one thread unless told otherwise.
Rerunning everything is what those programs do: the whole network over all pairs of prefixes for each new token.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from transformers import set_seed

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration

Key = TypeVar("Key")


@torch.inference_mode()
def search_by_steps(
    model: BidirSeq2SeqForConditionalGeneration, source: torch.Tensor, length: int, num_beams: int
) -> None:
    """Writes exactly `length` tokens about `source` `[1, S]` with the shipped search."""
    model.generate(
        input_ids=source,
        num_beams=num_beams,
        length_penalty=0.0,
        min_new_tokens=length,
        max_new_tokens=length,
        decoding_direction="both",
    )


@torch.inference_mode()
def rerun_everything(
    model: BidirSeq2SeqForConditionalGeneration, source: torch.Tensor, length: int, num_beams: int
) -> None:
    """Writes as many, reading document and all pairs of prefixes anew for each token."""
    config = model.config
    l2r = torch.full((num_beams, 1), config.bos_token_id)
    r2l = torch.full((num_beams, 1), config.eos_token_id)
    l2r_scores, r2l_scores = torch.zeros(num_beams), torch.zeros(num_beams)
    for _ in range(length):
        output = model(
            input_ids=source.expand(num_beams**2, -1),
            decoder_input_ids=l2r.repeat_interleave(num_beams, 0),
            r2l_decoder_input_ids=r2l.repeat(num_beams, 1),
            use_twin=True,
        )
        pairs = (num_beams, num_beams, -1)
        l2r, l2r_scores = _extend(l2r, l2r_scores, output.logits[:, -1].softmax(-1).view(pairs).mean(1))
        r2l, r2l_scores = _extend(r2l, r2l_scores, output.r2l_logits[:, -1].softmax(-1).view(pairs).mean(0))


def _extend(prefixes: torch.Tensor, scores: torch.Tensor, probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best K of all continuations of prefixes `[K, t]` with scores `[K]` by tokens with probabilities `[K, V]`."""
    log_probs = probs.log()
    # Marks are not written: every title is to have its full length.
    log_probs[:, :4] = float("-inf")
    totals, flat = (scores[:, None] + log_probs).flatten().topk(len(prefixes))
    vocab_size = probs.shape[-1]
    return torch.cat([prefixes[flat // vocab_size], (flat % vocab_size)[:, None]], dim=1), totals


def median_seconds(runs: dict[Key, Callable[[], None]], repeats: int) -> dict[Key, float]:
    """Median wall time of each run over `repeats` rounds, so that a busy moment does not hit one of them only."""
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="tokens to write")
    parser.add_argument("--num_beams", type=int, default=3, help="beams per direction, K (default 3)")
    parser.add_argument("--source_length", type=int, default=200, help="tokens of the document (default 200)")
    parser.add_argument("--vocab_size", type=int, default=2383, help="token ids (default 2383)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median is taken (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--output", help="JSON file to write the figures to")
    options = parser.parse_args(args)

    torch.set_num_threads(options.threads)
    set_seed(0)
    model = BidirSeq2SeqForConditionalGeneration(BidirSeq2SeqConfig.reference(vocab_size=options.vocab_size)).eval()
    source = torch.randint(4, options.vocab_size, (1, options.source_length))
    ways = {"ours": search_by_steps, "rerun": rerun_everything}
    for way in ways.values():
        way(model, source, 4, options.num_beams)
    runs = {
        (name, length): partial(way, model, source, length, options.num_beams)
        for length in options.lengths
        for name, way in ways.items()
    }
    seconds = median_seconds(runs, options.repeats)

    print(f"{'length':>6} {'ours, ms':>9} {'growth':>7} {'rerun, ms':>10} {'growth':>7} {'rerun/ours':>10}")
    rows: list[dict[str, float]] = []
    for length in options.lengths:
        row = {"length": length, **{name: seconds[name, length] for name in ways}}
        growth = {name: f"{row[name] / rows[-1][name]:.2f}x" if rows else "" for name in ways}
        print(
            f"{length:>6} {row['ours'] * 1e3:>9.1f} {growth['ours']:>7} {row['rerun'] * 1e3:>10.1f} "
            f"{growth['rerun']:>7} {row['rerun'] / row['ours']:>9.1f}x"
        )
        rows.append(row)
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        Path(options.output).write_text(json.dumps({"settings": settings, "seconds": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
