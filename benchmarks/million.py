"""What a million pairs cost: checking, tokenizing, an epoch of a tiny model, and titles through a kill.

    python benchmarks/million.py --sizes 10000 1000000 --output million.json

Each step is a process of its own on one thread. For each: seconds, and the largest memory that was its own (anonymous
pages; files that are mapped into memory, which the system takes back when it needs to, are shown apart). Titles are
written twice: in one go, and killed half-way with SIGKILL and gone on with; both files must be equal. Linux only.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.tokenization import build_char_tokenizer

STEPS = ("check", "encode", "train", "generate")
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
    output_dir: str = field(default="output/million", metadata={"help": "Folder for pairs, model and titles."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the figures."})

    def __post_init__(self):
        unknown = [step for step in self.steps if step not in STEPS]
        if unknown:
            raise ValueError(f"steps={self.steps}: {unknown} are none of {', '.join(STEPS)}")


def write_pairs(path: Path, number: int) -> None:
    """Sources of 10 to 60 letters, whose first four are the target."""
    draw = random.Random(number)
    with open(path, "w", encoding="utf-8") as file:
        for index in range(number):
            source = "".join(draw.choices(LETTERS, k=draw.randint(10, 60)))
            file.write(json.dumps({"id": index, "text": source, "title": source[:4]}) + "\n")


def write_model(folder: Path) -> None:
    tokenizer = build_char_tokenizer([LETTERS], min_frequency=1, model_max_length=100)
    config = BidirSeq2SeqConfig(
        vocab_size=len(tokenizer), embedding_size=16, hidden_size=16, num_attention_heads=2, attention_head_size=8
    )
    BidirSeq2SeqForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def watch(command: list[str], cache: Path, kill_when: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """Runs a command; returns its seconds and its peaks of memory in MB."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(cache)}
    own = mapped = 0
    begin = time.perf_counter()
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
            time.sleep(0.02)
    if child.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{command[:4]} failed: see {cache.parent / 'log.txt'}")
    return {"seconds": time.perf_counter() - begin, "own_mb": own / 1024, "mapped_mb": mapped / 1024}


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) for words in fields if words and words[0].startswith("Rss")}


def run_size(number: int, steps: list[str], folder: Path) -> dict[str, dict[str, float]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pairs, model, cache = folder / "pairs.jsonl", folder / "model", folder / "cache"
    write_pairs(pairs, number)
    write_model(model)
    package = [sys.executable, "-m", "bidir_seq2seq"]
    commands = {
        "check": [*package, "check", "--train_file", str(pairs), "--tokenizer_name", str(model)],
        "encode": [sys.executable, "-c", TOKENIZE, str(pairs), str(model)],
        "train": [
            *package, "train", "--train_file", str(pairs), "--model_name_or_path", str(model),
            "--output_dir", str(folder / "run"), "--num_train_epochs", "1", "--save_strategy", "no", "--use_cpu",
            "--per_device_train_batch_size", "256", "--max_source_length", "100", "--disable_tqdm", "true",
        ],
    }  # fmt: skip
    figures = {}
    for step in (step for step in commands if step in steps):
        figures[step] = watch(commands[step], cache)
        show(number, step, figures[step])
    if "generate" in steps:
        figures |= write_titles_twice(package, pairs, model, cache, number)
    return figures


def show(number: int, step: str, row: dict[str, float]) -> None:
    print(f"{number:10,}  {step:10}{row['seconds']:10.1f}{row['own_mb']:10.0f}{row['mapped_mb']:12.0f}", flush=True)


def write_titles_twice(package: list[str], pairs: Path, model: Path, cache: Path, number: int) -> dict:
    """Titles in one go, and with a kill half-way.

    Raises:
        RuntimeError: If they differ, or the kill came too late.
    """
    folder = pairs.parent
    command = [
        *package, "generate", "--model_name_or_path", str(model), "--input_file", str(pairs), "--batch_size", "256",
        "--max_new_tokens", "6", "--decoding_direction", "l2r", "--device", "cpu", "--output_file",
    ]  # fmt: skip
    figures = {"generate": watch([*command, str(folder / "whole.txt")], cache)}
    show(number, "generate", figures["generate"])
    partial = folder / "resumed.txt.partial"
    half = (folder / "whole.txt").stat().st_size // 2
    killed = watch(
        [*command, str(folder / "resumed.txt")],
        cache,
        kill_when=lambda: partial.exists() and partial.stat().st_size > half,
    )
    if not partial.exists():
        raise RuntimeError("the process was done before it was killed: take more pairs")
    lines = partial.read_bytes().count(b"\n")
    figures["resume"] = watch([*command, str(folder / "resumed.txt"), "--resume"], cache)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("whole.txt", "resumed.txt")]
    if digests[0] != digests[1] or (folder / "whole.txt").read_bytes().count(b"\n") != number:
        raise RuntimeError(f"the titles differ or are not {number}: compare {folder}/whole.txt and resumed.txt")
    show(number, "resume", figures["resume"])
    figures["resume"] |= {"killed_after_lines": lines, "seconds_before": killed["seconds"]}
    return figures


def main() -> None:
    (arguments,) = parse_arguments(MillionArguments, description=__doc__)
    results = {}
    print(f"{'pairs':>10}  {'step':10}{'seconds':>10}{'own MB':>10}{'mapped MB':>12}")
    for number in arguments.sizes:
        results[number] = run_size(number, arguments.steps, Path(arguments.output_dir) / str(number))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
