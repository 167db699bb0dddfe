"""How fast titles are written: our model beside other libraries, and beside rerunning everything for each token.

    python benchmarks/decode.py --setup
    python benchmarks/decode.py --output decode.json

Sentences per second of every system's own search, with the same source ids, the same beam and the same forced output
length. Weights are random, which changes nothing in the work of a fixed number of steps.
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

L2R = {"decoder_directions": "l2r"}
SHORTLIST = {"vocabulary_shortlist": 1000}
SYSTEMS = {
    "l2r beam 5": System("bidir", config=L2R, generate={"num_beams": 5}),
    "l2r beam 3": System("bidir", config=L2R, generate={"num_beams": 3}),
    "both beam 3": System("bidir", generate={"num_beams": 3}),
    "l2r beam 5 shortlist": System("bidir", config=L2R, generate={"num_beams": 5, **SHORTLIST}),
    "l2r beam 3 shortlist": System("bidir", config=L2R, generate={"num_beams": 3, **SHORTLIST}),
    "both beam 3 shortlist": System("bidir", generate={"num_beams": 3, **SHORTLIST}),
    "l2r beam 5 copies": System("bidir", config={**L2R, "use_copy": True}, generate={"num_beams": 5}),
    "both beam 3 copies": System("bidir", config={"use_copy": True}, generate={"num_beams": 3}),
    "joint beam 3": System("bidir", generate={"num_beams": 3, "joint_rescoring": True}),
    "rerun beam 3": System("bidir", generate={"num_beams": 3}, rerun=True, max_sentences=4),
    "OpenNMT-py beam 5": System("opennmt_lstm", generate={"num_beams": 5}),
    "fairseq beam 5": System("fairseq_lstm", generate={"num_beams": 5}),
    "JoeyNMT beam 5": System("joeynmt_rnn", generate={"num_beams": 5}),
    "BART beam 5": System("bart", generate={"num_beams": 5}),
}
PEERS = [name for name, system in SYSTEMS.items() if system.driver != "bidir"]


@dataclass
class DecodeArguments(ComparisonArguments):
    length: int = field(default=32, metadata={"help": "Steps of the decoder for each title."})
    single_sentences: int = field(
        default=8, metadata={"help": "Sentences written one after another in the comparison at batch size 1."}
    )


def pairs_of(dtypes: list[str]) -> list[tuple[str, str]]:
    """Which systems' speeds are divided by which."""
    suffixes = ["" if dtype == "float32" else f" {dtype}" for dtype in dtypes]
    return [
        pair
        for suffix in suffixes
        for pair in (
            *((f"l2r beam 5{suffix}", peer) for peer in PEERS),
            (f"both beam 3{suffix}", "rerun beam 3"),
            *((f"l2r beam 3{rows}{suffix}", f"both beam 3{rows}{suffix}") for rows in ("", " shortlist")),
            *((f"{rows} shortlist{suffix}", f"{rows}{suffix}") for rows in ("l2r beam 5", "both beam 3")),
            *((f"{rows}{suffix}", f"{rows} copies{suffix}") for rows in ("l2r beam 5", "both beam 3")),
        )
    ]


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(DecodeArguments, description=__doc__, args=args)
    if arguments.setup:
        set_up(arguments.peers_dir)
        return
    systems = select_systems(with_dtypes(SYSTEMS, arguments.dtypes), arguments.systems)
    systems, versions = with_before(systems, arguments.before)
    pairs = plain_pairs(load_batches(arguments)["test"], max(arguments.batch_size, arguments.single_sentences))
    batches = {
        "batch size 1": [[pair] for pair in pairs[: arguments.single_sentences]],
        f"batch size {arguments.batch_size}": [pairs[: arguments.batch_size]],
    }
    comparisons = {
        title: compare(systems, "decode", {"length": arguments.length}, rows, arguments)
        for title, rows in batches.items()
    }
    report(comparisons, pairs_of(arguments.dtypes) + versions, "sentences", arguments)


if __name__ == "__main__":
    main()
