"""What the comparisons with other libraries share: their environments, the text, the processes, turns and tables."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch.utils.data import Dataset

from bidir_seq2seq.data import encode_pairs, load_pairs
from bidir_seq2seq.tokenization import build_bpe_tokenizer

ROOT = Path(__file__).parents[1]
DRIVERS = Path(__file__).parent / "peers"

# Libraries that need an environment of their own. Each is installed without its dependencies, some of which would
# bring an old torch along; the pins in peers/<driver>.txt are installed instead.
LIBRARIES = {
    "opennmt_lstm": "OpenNMT-py==3.5.1",
    "joeynmt_rnn": "joeynmt==2.3.0",
    "fairseq_lstm": "fairseq-fixed==0.12.3.1",
}

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


@dataclass
class ComparisonArguments:
    """The arguments of both comparisons."""

    setup: bool = field(
        default=False, metadata={"help": "Make the environments of the other libraries, and do nothing else."}
    )
    peers_dir: str = field(
        default=str(ROOT / ".peers"), metadata={"help": "Folder of the environments of the other libraries."}
    )
    systems: list[str] | None = field(default=None, metadata={"help": "Systems to run. Default: all."})
    before: str | None = field(
        default=None,
        metadata={"help": "Another checkout of this package: our systems run from it too, in turns with this one's."},
    )
    train_file: str | None = field(
        default=None,
        metadata={"help": "Pairs that the vocabulary is made of. Default: docstrings of the installed packages."},
    )
    test_file: str | None = field(default=None, metadata={"help": "Pairs to write about. Goes with train_file."})
    source_column: str | None = field(default=None, metadata={"help": "Column to read. Default: the first."})
    target_column: str | None = field(default=None, metadata={"help": "Column to write. Default: the second."})
    vocab_size: int = field(default=8000, metadata={"help": "Token ids, shared by source and target."})
    hidden_size: int = field(default=256, metadata={"help": "Width of embedding, encoder and decoder."})
    num_layers: int = field(default=2, metadata={"help": "Layers of the encoder, and of the decoder."})
    max_source_length: int = field(default=64, metadata={"help": "Longest source in tokens; the rest is cut."})
    max_target_length: int = field(default=32, metadata={"help": "Longest target in tokens; the rest is cut."})
    batch_size: int = field(default=64, metadata={"help": "Pairs of a batch."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "Precisions of our systems: float32, bfloat16. The others run in float32, their own."},
    )
    rounds: int = field(default=5, metadata={"help": "Timed runs of each system, of which the median is taken."})
    threads: int = field(default=1, metadata={"help": "CPU threads of each system."})
    clock: str = field(
        default="wall",
        metadata={
            "help": "Seconds that pass, or seconds of the processor, which other programs disturb less.",
            "choices": ["wall", "cpu"],
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the choice of pairs."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write all figures to."})

    def __post_init__(self):
        for name in ("rounds", "threads", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if (self.train_file is None) != (self.test_file is None):
            raise ValueError("train_file and test_file go together: give both, or neither for docstrings")
        if unknown := set(self.dtypes) - {"float32", "bfloat16"}:
            raise ValueError(f"dtypes={sorted(unknown)} is not known: use float32, bfloat16")


@dataclass
class System:
    """One row of a comparison.

    Attributes:
        driver: Name of the program in `peers/` that runs it.
        config: Fields of our model's config beside the sizes.
        generate: Flags of `generate`; other libraries take `num_beams` from it.
        rerun: Whether our model runs everything anew for each token.
        max_sentences: The most sentences of a batch that it is given, for what would take minutes.
        dtype: Its precision.
        checkout: Of which checkout our model is; `None`: this one.
    """

    driver: str
    config: dict = field(default_factory=dict)
    generate: dict = field(default_factory=dict)
    rerun: bool = False
    max_sentences: int | None = None
    dtype: str = "float32"
    checkout: str | None = None


def with_dtypes(systems: dict[str, System], dtypes: Sequence[str]) -> dict[str, System]:
    """A row in each precision for each of our systems; names keep a suffix unless the precision is float32."""
    rows: dict[str, System] = {}
    for name, system in systems.items():
        ours = system.driver == "bidir" and not system.rerun
        for dtype in dtypes if ours else ["float32"]:
            suffix = "" if dtype == "float32" else f" {dtype}"
            rows[name + suffix] = System(**{**asdict(system), "dtype": dtype})
    return rows


def with_before(systems: dict[str, System], checkout: str | None) -> tuple[dict[str, System], list[tuple[str, str]]]:
    """Rows of our systems from another checkout too, named so, and which speeds are divided by which."""
    ours = {name: system for name, system in systems.items() if checkout and system.driver == "bidir"}
    before = {f"{name} before": replace(system, checkout=checkout) for name, system in ours.items()}
    return systems | before, [(name, f"{name} before") for name in ours]


def select_systems(systems: dict[str, System], names: Sequence[str] | None) -> dict[str, System]:
    """The systems with these names, or all.

    Raises:
        ValueError: If a name is not known.
    """
    for name in names or ():
        if name not in systems:
            raise ValueError(f"systems: {name!r} is not known; use some of {', '.join(map(repr, systems))}")
    return {name: system for name, system in systems.items() if not names or name in names}


def set_up(peers_dir: str | Path, drivers: Sequence[str] = tuple(LIBRARIES)) -> None:
    """Makes the environment of each library in a folder of its name, unless it is there with the same pins."""
    for driver in drivers:
        library, environment, pins = LIBRARIES[driver], Path(peers_dir) / driver, DRIVERS / f"{driver}.txt"
        installed = environment / "installed.txt"
        if installed.exists() and installed.read_text() == pins.read_text():
            print(f"{driver}: already in {environment}")
            continue
        print(f"{driver}: installing {library} into {environment}", flush=True)
        venv.create(environment, with_pip=True, clear=True)
        install = [str(python_of(peers_dir, driver)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--no-deps", "--requirement", str(pins)], check=True)
        # One of them is built, with the torch and Cython that have just been installed.
        subprocess.run([*install, "--no-deps", "--no-build-isolation", library], check=True)
        shutil.copy(pins, installed)


def python_of(peers_dir: str | Path, driver: str) -> Path:
    """The Python of a driver's environment; this one for those that need none."""
    return Path(peers_dir) / driver / "bin" / "python" if driver in LIBRARIES else Path(sys.executable)


def load_batches(arguments: ComparisonArguments) -> dict[str, Dataset]:
    """Pairs of token ids, the columns `input_ids` and `labels` of the splits `train` and `test`, in random order."""
    if arguments.train_file is None:
        folder = ROOT / "data" / "docstrings"
        gather = [sys.executable, str(ROOT / "examples" / "docstring_pairs.py"), "--output_dir", str(folder)]
        subprocess.run(gather, check=True, stdout=subprocess.DEVNULL)
        files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    else:
        files = {"train": arguments.train_file, "test": arguments.test_file}
    pairs = load_pairs(files, source_column=arguments.source_column, target_column=arguments.target_column)
    texts = (text for row in pairs["train"] for text in (row["source"], row["target"]) if text)
    tokenizer = build_bpe_tokenizer(texts, vocab_size=arguments.vocab_size)
    lengths = (arguments.max_source_length, arguments.max_target_length)
    return {name: encode_pairs(split.shuffle(arguments.seed), tokenizer, *lengths)[0] for name, split in pairs.items()}


def plain_pairs(encoded: Dataset, count: int) -> list[tuple[list[int], list[int]]]:
    """The first `count` pairs without their end ids, which each library adds by itself.

    Raises:
        ValueError: If there are fewer.
    """
    if len(encoded) < count:
        raise ValueError(f"{count} pairs are needed and there are {len(encoded)}: give more, or lower batch_size")
    rows = encoded.select(range(count))
    return [(source[:-1], target[:-1]) for source, target in zip(rows["input_ids"], rows["labels"])]


class Worker:
    """A system in a process of its own, prepared and warmed up by one run.

    Attributes:
        facts: What it said of itself: `parameters` and `versions`.
        sentences: How many it is given in a run.

    Raises:
        RuntimeError: If the process ends early, with the last line of what it said.
    """

    def __init__(self, system: System, settings: dict, batches: list, peers_dir: str | Path):
        if system.max_sentences is not None:
            batches = [batch[: system.max_sentences] for batch in batches]
        self.sentences = sum(map(len, batches))
        self._scratch = tempfile.TemporaryDirectory()
        self._log = Path(self._scratch.name) / "log.txt"
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings["threads"]))}
        if system.driver in LIBRARIES:
            # Its environment is to hold its pins and nothing else.
            environment.pop("PYTHONPATH", None)
        else:
            # It finds what this process finds: the same checkout, and the modules beside this one.
            other = [str(Path(system.checkout) / "src")] if system.checkout else []
            environment["PYTHONPATH"] = os.pathsep.join([*other, *sys.path])
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python_of(peers_dir, system.driver), str(DRIVERS / f"{system.driver}.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        settings = {**settings, **asdict(system), "batches": batches, "scratch_dir": self._scratch.name}
        self.facts = self._ask(settings)

    def run(self) -> dict:
        """One run over all batches.

        Returns:
            Its `wall_seconds` and `cpu_seconds`, its target `tokens`, and the `peak_bytes` of the process so far.
        """
        return self._ask("run")

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._scratch.cleanup()

    def _ask(self, question) -> dict:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["without a word"]
            raise RuntimeError(lines[-1])
        return json.loads(answer)


def in_turns(runs: dict[Key, Callable[[], Result]], rounds: int) -> dict[Key, list[Result]]:
    """Results of `rounds` calls of each run, in turns: a busy moment of the machine does not hit one of them only."""
    results: dict[Key, list[Result]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            results[key].append(run())
    return results


def compare(
    systems: dict[str, System], task: str, settings: dict, batches: list, arguments: ComparisonArguments
) -> dict[str, dict]:
    """Runs systems in turns, each in its own process and warmed up by one run.

    Args:
        systems: What to run.
        task: `"decode"` or `"train"`.
        settings: For the workers, beside those in `arguments`.
        batches: Lists of pairs (source ids, target ids).
        arguments: Sizes, rounds and threads.

    Returns:
        For each system its facts, its `sentences` and for each answer of `Worker.run` a list over the rounds; for one
        that cannot run, `error`.
    """
    names = ("vocab_size", "hidden_size", "num_layers", "batch_size", "threads", "seed")
    settings = {"task": task, **{name: getattr(arguments, name) for name in names}, **settings}
    lengths = (arguments.max_source_length, arguments.max_target_length, settings.get("length", 0))
    settings["max_length"] = 1 + max(lengths)
    results: dict[str, dict] = {}
    workers: dict[str, Worker] = {}
    try:
        for name, system in systems.items():
            print(f"preparing {name}", file=sys.stderr, flush=True)
            if not python_of(arguments.peers_dir, system.driver).exists():
                results[name] = {"error": f"not in {arguments.peers_dir}: run with --setup first"}
                continue
            try:
                workers[name] = Worker(system, settings, batches, arguments.peers_dir)
            except RuntimeError as error:
                results[name] = {"error": str(error)}
        timings = in_turns({name: worker.run for name, worker in workers.items()}, arguments.rounds)
        for name, worker in workers.items():
            columns = {key: [row[key] for row in timings[name]] for key in timings[name][0]}
            results[name] = {**worker.facts, "sentences": worker.sentences, **columns}
    finally:
        for worker in workers.values():
            worker.close()
    check_tokens(results)
    return {name: results[name] for name in systems}


def check_tokens(results: dict[str, dict]) -> None:
    """Makes sure that all systems did the same work.

    Raises:
        RuntimeError: If a system counted another number of target tokens a sentence.
    """
    counts = {name: row["tokens"][0] / row["sentences"] for name, row in results.items() if "error" not in row}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"systems wrote different numbers of tokens a sentence: {counts}")


class Figures:
    """The results of one comparison as speeds, tables and ratios.

    Args:
        results: As `compare` gives them.
        unit: `"sentences"` or `"tokens"`.
        clock: `"wall"` or `"cpu"`.
    """

    def __init__(self, results: dict[str, dict], unit: str, clock: str):
        self.results, self.unit, self.clock = results, unit, clock

    def speeds(self, name: str) -> list[float]:
        """Units a second in each round."""
        row = self.results[name]
        seconds = row[f"{self.clock}_seconds"]
        totals = row["tokens"] if self.unit == "tokens" else [row["sentences"]] * len(seconds)
        return [total / second for total, second in zip(totals, seconds)]

    def ratio(self, fast: str, slow: str) -> dict[str, float] | None:
        """How many times as fast one system is as another, round by round: median, low, high; `None` without both."""
        if any("error" in self.results.get(name, {"error": "not asked for"}) for name in (fast, slow)):
            return None
        ratios = [a / b for a, b in zip(self.speeds(fast), self.speeds(slow))]
        return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}

    def table(self) -> str:
        """The medians, with lowest and highest, beside peak memory and size."""
        width = max(map(len, self.results))
        columns = f"{self.unit + '/s':>12} {'low':>9} {'high':>9} {'peak MB':>8} {'parameters':>11}"
        lines = [f"{'system':<{width}} {columns}"]
        for name, row in self.results.items():
            if "error" in row:
                lines.append(f"{name:<{width}} {row['error']}")
                continue
            rates = self.speeds(name)
            lines.append(
                f"{name:<{width}} {statistics.median(rates):>12.1f} {min(rates):>9.1f} {max(rates):>9.1f} "
                f"{max(row['peak_bytes']) / 1e6:>8.0f} {row['parameters']:>11,}"
            )
        return "\n".join(lines)


def machine() -> dict[str, object]:
    """The processor, what of it matters here, its cores, and how busy it was."""
    name, flags = platform.processor(), set()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        values = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        values = {key.strip(): value.strip() for key, value in values.items()}
        name, flags = values.get("model name", name), set(values.get("flags", "").split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in flags],
        "load": os.getloadavg()[0],
        "system": platform.system(),
        "python": platform.python_version(),
    }


def report(
    comparisons: dict[str, dict], pairs: Sequence[tuple[str, str]], unit: str, arguments: ComparisonArguments
) -> None:
    """Prints a table and the ratios of each comparison; with `output`, writes all figures as JSON.

    Args:
        comparisons: Results of `compare` by title.
        pairs: Systems (fast, slow) whose speeds are divided.
        unit: `"sentences"` or `"tokens"`.
        arguments: For threads, clock and output.
    """
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, {' '.join(about['flags'])}; threads: {arguments.threads}")
    ratios: dict[str, dict] = {}
    for title, results in comparisons.items():
        figures = Figures(results, unit, arguments.clock)
        print(f"\n{title}\n{figures.table()}\n")
        ratios[title] = {f"{fast} / {slow}": figures.ratio(fast, slow) for fast, slow in pairs}
        for name, times in ratios[title].items():
            if times is not None:
                print(f"{name}: {times['median']:.2f} [{times['low']:.2f}, {times['high']:.2f}]")
    if arguments.output:
        everything = {
            "machine": about,
            "arguments": asdict(arguments),
            "unit": unit,
            "results": comparisons,
            "ratios": ratios,
        }
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(everything, indent=2) + "\n")
