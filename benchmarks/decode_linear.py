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

import torch
from comparison import in_turns
from rerun import rerun_everything
from transformers import set_seed

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration


@torch.inference_mode()
def search_by_steps(
    model: BidirSeq2SeqForConditionalGeneration,
    source: torch.Tensor,
    attention_mask: torch.Tensor,
    length: int,
    num_beams: int,
) -> None:
    """Writes exactly `length` tokens about `source` `[1, S]` with the shipped search."""
    model.generate(
        input_ids=source,
        attention_mask=attention_mask,
        num_beams=num_beams,
        length_penalty=0.0,
        min_new_tokens=length,
        max_new_tokens=length,
        decoding_direction="both",
    )


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """The run, answering with its seconds."""

    def call() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return call


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
    mask = torch.ones_like(source)
    ways = {"ours": search_by_steps, "rerun": rerun_everything}
    for way in ways.values():
        way(model, source, mask, 4, options.num_beams)
    runs = {
        (name, length): timed(partial(way, model, source, mask, length, options.num_beams))
        for length in options.lengths
        for name, way in ways.items()
    }
    seconds = {key: statistics.median(values) for key, values in in_turns(runs, options.repeats).items()}

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
