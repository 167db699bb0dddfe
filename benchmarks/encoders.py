"""What reads the source: its time and memory at several lengths, and, with data, what its titles are worth.

    python benchmarks/encoders.py --output encoders.json
    python benchmarks/encoders.py --lengths 64 --settings benchmarks/study/xwlb_brief.yaml \\
        --data_dir DATA/xwlb_brief --seconds 200 --output encoders.json
    python benchmarks/encoders.py --draw benchmarks/encoders.json

Encoders of equal width and as many layers, with random weights, read the same ids in turns, so that their ratios are
of one run; forward alone, and forward and back. Memory is what the process held at its highest beyond what it held
before. With data (`train.jsonl` and `test.jsonl` in `data_dir`) a model of each encoder learns for the same time
(`--max_train_minutes`, on a core of its own). Their titles of the test pairs are compared by ROUGE-L. The last draws
the curves of a file of figures, and measures nothing.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import yaml
from comparison import ROOT, in_turns, machine
from matplotlib.ticker import LogLocator, StrMethodFormatter
from seeds import train_seed
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.evaluation import available_systems, predict
from bidir_seq2seq.metrics import pair_scores, paired_bootstrap

ENCODERS: dict[str, dict] = {
    "lstm": {},
    "gru": {"rnn_type": "gru"},
    "cnn": {"encoder_type": "cnn"},
    "self_attention": {"encoder_type": "self_attention"},
}
PASSES = ("forward", "forward and back")
# What is drawn of each, against the tokens of a source.
CURVES = (("forward", "ms"), ("forward and back", "ms"), ("forward and back", "MB"))


@dataclass
class EncodersArguments:
    encoders: list[str] = field(default_factory=lambda: list(ENCODERS), metadata={"help": "Which encoders."})
    lengths: list[int] = field(default_factory=lambda: [64, 256, 1024], metadata={"help": "Tokens of a source."})
    batch_size: int = field(default=16, metadata={"help": "Sources in a batch."})
    size: int = field(default=256, metadata={"help": "Width of encoder and embedding."})
    layers: int = field(default=2, metadata={"help": "Layers of the encoder."})
    vocab_size: int = field(default=8000, metadata={"help": "Token ids."})
    rounds: int = field(default=7, metadata={"help": "Runs in turns, of which the median is taken."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    settings: str = field(
        default="benchmarks/study/xwlb_brief.yaml", metadata={"help": "Settings of the training, with data."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of pairs to learn from. Default: none."})
    seconds: float = field(default=200.0, metadata={"help": "Seconds of a training."})
    seed: int = field(default=0, metadata={"help": "Of weights and batches."})
    draw: str | None = field(
        default=None,
        metadata={"help": "Draw docs/images/encoders.png from this file of figures, and do nothing else."},
    )
    models_dir: str = field(default="output/encoders", metadata={"help": "Folder for models."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})


def make_encoder(name: str, arguments: EncodersArguments) -> torch.nn.Module:
    """An encoder with random weights, that of a model of one direction."""
    config = BidirSeq2SeqConfig(
        vocab_size=arguments.vocab_size,
        embedding_size=arguments.size,
        hidden_size=arguments.size,
        encoder_layers=arguments.layers,
        encoder_ffn_dim=4 * arguments.size,
        num_attention_heads=8,
        attention_head_size=arguments.size // 8,
        decoder_directions="l2r",
        **ENCODERS[name],
    )
    return BidirSeq2SeqForConditionalGeneration(config).get_encoder()


def read(encoder: torch.nn.Module, ids: torch.Tensor, learns: bool) -> None:
    """Encodes ids `[B, S]`, and brings gradients to the weights if it learns."""
    with torch.set_grad_enabled(learns):
        states = encoder(ids).last_hidden_state
        if learns:
            states.sum().backward()
            encoder.zero_grad(set_to_none=True)


def processor_seconds(run: Callable[[], None]) -> float:
    """How long a run keeps the processor."""
    start = time.process_time()
    run()
    return time.process_time() - start


def megabytes(run: Callable[[], None]) -> float:
    """By how much a run's memory grows at most."""
    # What earlier runs have freed would be taken first, and not be seen to grow.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _kibibytes("VmRSS")
    run()
    return (_kibibytes("VmHWM") - before) * 1024 / 1e6


def _kibibytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_speed(arguments: EncodersArguments) -> list[dict]:
    """Medians of each encoder, length and pass; printed with their ratios to the first encoder."""
    encoders = {name: make_encoder(name, arguments) for name in arguments.encoders}
    runs: dict[tuple, Callable[[], None]] = {}
    for length in arguments.lengths:
        ids = torch.randint(4, arguments.vocab_size, (arguments.batch_size, length))
        for learns, way in enumerate(PASSES):
            for name, encoder in encoders.items():
                runs[length, way, name] = partial(read, encoder, ids, bool(learns))
    for run in runs.values():
        run()
    found = in_turns({key: partial(processor_seconds, run) for key, run in runs.items()}, arguments.rounds)
    rows = []
    print(f"{'length':>6} {'pass':17}{'encoder':15}{'ms':>8}{'range':>14}{'ratio':>7}{'range':>12}{'MB':>7}")
    for (length, way, name), seconds in found.items():
        first = found[length, way, arguments.encoders[0]]
        ratios = [own / other for own, other in zip(seconds, first)]
        row = {"length": length, "pass": way, "encoder": name, "seconds": seconds, "ratio": statistics.median(ratios)}
        rows.append({**row, "megabytes": megabytes(runs[length, way, name])})
        print(
            f"{length:>6} {way:17}{name:15}{statistics.median(seconds) * 1e3:>8.1f}"
            f"{f'{min(seconds) * 1e3:.0f}-{max(seconds) * 1e3:.0f}':>14}{row['ratio']:>7.2f}"
            f"{f'{min(ratios):.2f}-{max(ratios):.2f}':>12}{rows[-1]['megabytes']:>7.0f}"
        )
    return rows


def learn(arguments: EncodersArguments, name: str) -> dict:
    """Trains a model of an encoder for the given time, and writes titles of the test pairs."""
    # A validation would be part of the time.
    changes = {"train_file": str(Path(arguments.data_dir) / "train.jsonl"), "validation_file": None}
    changes |= {**ENCODERS[name], "report": False, "save_strategy": "no", "disable_tqdm": True}
    # A rate that falls when the time ends, and more passes than there is time for.
    changes |= {"lr_scheduler_type": "warmup_stable_decay", "max_steps": -1, "num_train_epochs": 1000.0}
    # All of one width, which would else follow from how fast each is.
    said = yaml.safe_load(Path(arguments.settings).read_text(encoding="utf-8"))
    changes |= {name: said.get(name, getattr(BidirSeq2SeqConfig, name)) for name in ("hidden_size", "embedding_size")}
    folder = Path(arguments.models_dir) / f"{name}-{arguments.seed}"
    start = time.process_time()
    train_seed(arguments.settings, folder, arguments.seed, **changes, max_train_minutes=arguments.seconds / 60)
    seconds = time.process_time() - start
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pairs = load_pairs({"test": str(Path(arguments.data_dir) / "test.jsonl")})["test"]
    systems = [system for system in available_systems(model) if system in ("l2r", "r2l", "joint")]
    titles = predict(model, tokenizer, pairs, systems, progress=False, num_beams=3)
    references = [text or "" for text in pairs["target"]]
    return {
        "encoder": name,
        "updates": json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"],
        "seconds": seconds,
        "parameters": sum(weight.numel() for weight in model.get_encoder().layers.parameters()),
        "rougeL": {system: pair_scores(titles[system], references)["rougeL"] for system in systems},
    }


def measure_quality(arguments: EncodersArguments) -> list[dict]:
    """Figures of each encoder's model; printed with the differences to the first one's."""
    runs = [learn(arguments, name) for name in arguments.encoders]
    print(f"\n{'encoder':16}{'updates':>8}{'seconds':>8}  {'writes':7}{'ROUGE-L':>8}{'difference':>11}")
    for run in runs:
        run["difference"] = {}
        for system, scores in run["rougeL"].items():
            test = paired_bootstrap(scores, runs[0]["rougeL"][system])
            run["difference"][system] = asdict(test)
            beside = "" if run is runs[0] else f"{test.difference:>+11.2f} [{test.low:+.2f}, {test.high:+.2f}]"
            figures = f"{run['updates']:>8}{run['seconds']:>8.0f}  {system:7}{statistics.mean(scores):>8.2f}"
            print(f"{run['encoder']:16}{figures}{beside}")
    return runs


def draw(figures: list[dict], plot_file: Path) -> None:
    """Draws time and memory against the tokens of a source, a curve for each encoder.

    Args:
        figures: As of `measure_speed`.
        plot_file: Where the picture goes.
    """
    figure, axes = plt.subplots(1, len(CURVES), figsize=(11, 3.4), layout="constrained")
    for axis, (way, unit) in zip(axes, CURVES):
        for name in dict.fromkeys(row["encoder"] for row in figures):
            rows = [row for row in figures if (row["encoder"], row["pass"]) == (name, way)]
            heights = [statistics.median(row["seconds"]) * 1e3 if unit == "ms" else row["megabytes"] for row in rows]
            axis.plot([row["length"] for row in rows], heights, marker="o", label=name)
        axis.set(title=way, xlabel="tokens of a source", ylabel=f"{unit} a batch", xscale="log", yscale="log")
        lengths = sorted({row["length"] for row in figures})
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.minorticks_off()
        # Powers of ten leave an axis of one decade without numbers.
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes[0].legend()
    figure.savefig(plot_file, dpi=110)
    plt.close(figure)


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(EncodersArguments, description=__doc__, args=args)
    if arguments.draw:
        figures = json.loads(Path(arguments.draw).read_text(encoding="utf-8"))["speed"]
        draw(figures, ROOT / "docs" / "images" / "encoders.png")
        return
    torch.set_num_threads(arguments.threads)
    set_seed(arguments.seed)
    results = {"machine": machine(), "arguments": asdict(arguments), "speed": measure_speed(arguments)}
    if arguments.data_dir is not None:
        results["quality"] = measure_quality(arguments)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
