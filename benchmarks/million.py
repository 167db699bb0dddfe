"""What a million pairs cost: checking, encoding, a pass of a tiny model in memory and streamed, titles through kills.

    python benchmarks/million.py --sizes 10000 1000000 --output million.json

Each step is a process of its own on one thread. For each: seconds, those of the processor, and the largest memory that
was its own (anonymous pages; files that are mapped into memory, which the system takes back when it needs to, stand
apart). Titles are written twice: in one go, and killed with SIGKILL at random places and gone on with each time; both
files must be equal byte for byte. Linux only.
"""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.tokenization import build_char_tokenizer

STEPS = ("check", "encode", "train", "stream", "generate")
BATCH = 256
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENIZE = """
import sys
from transformers import AutoTokenizer
from bidir_seq2seq.data import encode_pairs, load_pairs
pairs = load_pairs({"train": sys.argv[1]})["train"]
encoded, report = encode_pairs(pairs, AutoTokenizer.from_pretrained(sys.argv[2]), 100, 20)
print(report)
"""


@dataclass
class MillionArguments:
    sizes: list[int] = field(default_factory=lambda: [10_000, 1_000_000], metadata={"help": "Numbers of pairs."})
    steps: list[str] = field(default_factory=lambda: list(STEPS), metadata={"help": f"Of {', '.join(STEPS)}."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Updates of train and stream. Default: a pass over the pairs."}
    )
    kills: int = field(default=3, metadata={"help": "How many times the second writing is killed."})
    seed: int = field(default=0, metadata={"help": "Of the places where it is."})
    output_dir: str = field(default="output/million", metadata={"help": "Folder for pairs, model and titles."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the figures."})

    def __post_init__(self):
        unknown = [step for step in self.steps if step not in STEPS]
        if unknown:
            raise ValueError(f"steps={self.steps}: {unknown} are none of {', '.join(STEPS)}")
        for name in ("kills", "max_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def write_pairs(path: Path, number: int) -> None:
    """Sources of 10 to 30 letters, whose first four are the target."""
    draw = random.Random(number)
    with open(path, "w", encoding="utf-8") as file:
        for index in range(number):
            source = "".join(draw.choices(LETTERS, k=draw.randint(10, 30)))
            file.write(json.dumps({"id": index, "text": source, "title": source[:4]}) + "\n")


def write_model(folder: Path) -> None:
    tokenizer = build_char_tokenizer([LETTERS], min_frequency=1, model_max_length=100)
    sizes = {"embedding_size": 16, "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8}
    config = BidirSeq2SeqConfig(vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1, **sizes)
    BidirSeq2SeqForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def watch(command: list[str], cache: Path, kill_when: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """Runs a command; returns its seconds and its peaks of memory in MB."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(cache)}
    own = mapped = 0
    begin, used = time.perf_counter(), _processor_seconds()
    with (
        open(cache.parent / "log.txt", "ab") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as child,
    ):
        while child.poll() is None:
            status = _status(child.pid)
            own = max(own, status.get("RssAnon", 0))
            mapped = max(mapped, status.get("RssFile", 0))
            if kill_when():
                child.send_signal(signal.SIGKILL)
            time.sleep(0.05)
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command[:4]} failed: see {cache.parent / 'log.txt'}")
    figures = {"seconds": time.perf_counter() - begin, "processor_seconds": _processor_seconds() - used}
    return figures | {"own_mb": own / 1024, "mapped_mb": mapped / 1024}


def _processor_seconds() -> float:
    """Of all processes that have ended and were begun here."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) for words in fields if words and words[0].startswith("Rss")}


def run_size(number: int, arguments: MillionArguments, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each step's name and figures, as soon as it is done."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pairs, model, cache = folder / "pairs.jsonl", folder / "model", folder / "cache"
    write_pairs(pairs, number)
    write_model(model)
    package = [sys.executable, "-m", "bidir_seq2seq"]
    updates = arguments.max_steps or math.ceil(number / BATCH)
    train = [
        *package, "train", "--train_file", str(pairs), "--model_name_or_path", str(model), "--save_strategy", "no",
        "--max_steps", str(updates), "--use_cpu", "--per_device_train_batch_size", str(BATCH), "--max_source_length",
        "100", "--disable_tqdm", "true", "--report", "false",
    ]  # fmt: skip
    commands = {
        "check": [*package, "check", "--train_file", str(pairs), "--tokenizer_name", str(model)],
        "encode": [sys.executable, "-c", TOKENIZE, str(pairs), str(model)],
        "train": [*train, "--output_dir", str(folder / "run")],
        "stream": [*train, "--output_dir", str(folder / "stream"), "--streaming"],
    }
    for step in (step for step in commands if step in arguments.steps):
        figures = watch(commands[step], cache)
        yield step, figures | ({"pairs_trained_on": updates * BATCH} if step in ("train", "stream") else {})
    if "generate" in arguments.steps:
        yield from write_titles_twice(package, pairs, model, cache, number, arguments)


def write_titles_twice(
    package: list[str], pairs: Path, model: Path, cache: Path, number: int, arguments: MillionArguments
) -> Iterator[tuple[str, dict[str, float]]]:
    """Titles in one go, and with kills at random places; figures of both.

    Raises:
        RuntimeError: If they differ, or a kill came too late.
    """
    folder = pairs.parent
    command = [
        *package, "generate", "--model_name_or_path", str(model), "--input_file", str(pairs), "--batch_size",
        str(BATCH), "--max_new_tokens", "6", "--decoding_direction", "l2r", "--device", "cpu", "--output_file",
    ]  # fmt: skip
    yield "generate", watch([*command, str(folder / "whole.txt")], cache)
    whole = (folder / "whole.txt").read_bytes()
    partial, draw = folder / "resumed.txt.partial", random.Random(arguments.seed)
    places = sorted(int(len(whole) * draw.uniform(0.05, 0.95)) for _ in range(arguments.kills))
    runs, lines = [], []
    for place in [*places, math.inf]:
        resume = ["--resume"] if partial.exists() else []
        runs.append(
            watch([*command, str(folder / "resumed.txt"), *resume], cache, lambda place=place: _size(partial) > place)
        )
        if place < math.inf:
            if not partial.exists():
                raise RuntimeError("the process was done before it was killed: take more pairs")
            lines.append(partial.read_bytes().count(b"\n"))
    if (folder / "resumed.txt").read_bytes() != whole or whole.count(b"\n") != number:
        raise RuntimeError(f"the titles differ or are not {number}: compare {folder}/whole.txt and resumed.txt")
    sums = {name: sum(run[name] for run in runs) for name in ("seconds", "processor_seconds")}
    peaks = {name: max(run[name] for run in runs) for name in ("own_mb", "mapped_mb")}
    yield "killed", {**sums, **peaks, "killed_after_lines": lines}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def show(number: int, step: str, row: dict[str, float]) -> None:
    figures = f"{row['seconds']:10.1f}{row['processor_seconds']:11.1f}{row['own_mb']:10.0f}{row['mapped_mb']:11.0f}"
    more = {name: value for name, value in row.items() if name in ("pairs_trained_on", "killed_after_lines")}
    print(f"{number:10,}  {step:10}{figures}  {more or ''}", flush=True)


def main() -> None:
    (arguments,) = parse_arguments(MillionArguments, description=__doc__)
    results: dict[int, dict] = {}
    print(f"{'pairs':>10}  {'step':10}{'seconds':>10}{'processor':>11}{'own MB':>10}{'mapped MB':>11}")
    for number in arguments.sizes:
        results[number] = {}
        for step, figures in run_size(number, arguments, Path(arguments.output_dir) / str(number)):
            results[number][step] = figures
            show(number, step, figures)
            if arguments.output:
                Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
