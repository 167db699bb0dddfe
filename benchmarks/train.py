"""How fast models train: ours in one direction and in both, beside other libraries.

    python benchmarks/train.py --setup
    python benchmarks/train.py --output train.json

Target tokens per second of full updates (gradients to zero, forward, backward, clipping, optimizer) over the same
batches of ids, at equal hidden size, layers and vocabulary. The twin model reads each target twice, once from each
end, and its tokens are counted once.
"""

from dataclasses import dataclass, field

from comparison import (
    ComparisonArguments,
    System,
    compare,
    load_batches,
    plain_pairs,
    report,
    select_systems,
    set_up,
    with_before,
    with_dtypes,
)

from bidir_seq2seq.arguments import parse_arguments

SYSTEMS = {
    "l2r": System("bidir", config={"decoder_directions": "l2r"}),
    "twin": System("bidir"),
    "l2r copies": System("bidir", config={"decoder_directions": "l2r", "use_copy": True}),
    "twin copies": System("bidir", config={"use_copy": True}),
    "OpenNMT-py": System("opennmt_lstm"),
    "fairseq": System("fairseq_lstm"),
    "JoeyNMT": System("joeynmt_rnn"),
    "BART": System("bart"),
}
PEERS = [name for name, system in SYSTEMS.items() if system.driver != "bidir"]


@dataclass
class TrainArguments(ComparisonArguments):
    updates: int = field(default=8, metadata={"help": "Updates of one run, each with a batch of its own."})


def pairs_of(dtypes: list[str]) -> list[tuple[str, str]]:
    """Which systems' speeds are divided by which."""
    suffixes = ["" if dtype == "float32" else f" {dtype}" for dtype in dtypes]
    beside_peers = [(f"{ours}{suffix}", peer) for suffix in suffixes for ours in ("l2r", "twin") for peer in PEERS]
    return beside_peers + [(f"{x}{suffix}", f"{x} copies{suffix}") for suffix in suffixes for x in ("l2r", "twin")]


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(TrainArguments, description=__doc__, args=args)
    if arguments.setup:
        set_up(arguments.peers_dir)
        return
    systems = select_systems(with_dtypes(SYSTEMS, arguments.dtypes), arguments.systems)
    systems, versions = with_before(systems, arguments.before)
    size = arguments.batch_size
    # Batches of similar source length, as most of these libraries make them.
    pairs = sorted(plain_pairs(load_batches(arguments)["train"], arguments.updates * size), key=lambda p: len(p[0]))
    batches = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    results = compare(systems, "train", {}, batches, arguments)
    report({f"batch size {size}": results}, pairs_of(arguments.dtypes) + versions, "tokens", arguments)


if __name__ == "__main__":
    main()
