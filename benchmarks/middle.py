"""What writing from both ends to the middle could save: half the steps, of twice the rows.

    python benchmarks/middle.py

A writer that meets its twin in the middle makes half the steps, each for both directions. It cannot be faster than one
direction that makes half the steps for as many rows as both have together: the bound. Beside it stands the search of
both directions as it is, stopped half-way, which also scores each pair of hypotheses. Weights are random; titles have
20 tokens, documents 110.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from functools import partial

import torch
from comparison import in_turns, machine

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.arguments import parse_arguments

LENGTH = 20
# Direction, beams (in both: of each side), steps.
WAYS = {
    "one direction, beam 3": ("l2r", 3, LENGTH),
    "the bound, beams of 3": ("l2r", 6, LENGTH // 2),
    "both half-way, beams of 3": ("both", 3, LENGTH // 2),
    "one direction, greedy": ("l2r", 1, LENGTH),
    "the bound, greedy": ("l2r", 2, LENGTH // 2),
    "both half-way, greedy": ("both", 1, LENGTH // 2),
}


@dataclass
class MiddleArguments:
    batch_sizes: list[int] = field(default_factory=lambda: [1, 64], metadata={"help": "Documents of a call."})
    rounds: int = field(default=9, metadata={"help": "Runs in turns, of which the median is taken."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})


def seconds_of(model, documents: torch.LongTensor, direction: str, beams: int, steps: int) -> float:
    """What writing so many tokens of each of `[B, S]` documents takes."""
    asked = {"ranking": "own"} if direction == "both" else {}
    start = time.perf_counter()
    model.generate(
        input_ids=documents,
        decoding_direction=direction,
        num_beams=beams,
        min_new_tokens=steps,
        max_new_tokens=steps,
        **asked,
    )
    return time.perf_counter() - start


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(MiddleArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    # So that both read each other.
    config = BidirSeq2SeqConfig(vocab_size=3000, embedding_size=128, hidden_size=128, use_copy=True)
    model = BidirSeq2SeqForConditionalGeneration(config).eval()
    print(machine())
    for batch_size in arguments.batch_sizes:
        documents = torch.randint(4, config.vocab_size, (batch_size, 110))
        runs = {name: partial(seconds_of, model, documents, *way) for name, way in WAYS.items()}
        in_turns(runs, 1)
        seconds = in_turns(runs, arguments.rounds)
        base = seconds["one direction, beam 3"]
        print(f"\nbatches of {batch_size}{'':17}{'ms':>8}   as fast as one direction with a beam of 3")
        for name, found in seconds.items():
            ratio = statistics.median(one / other for one, other in zip(base, found))
            print(f"{name:30}{1000 * statistics.median(found):8.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
