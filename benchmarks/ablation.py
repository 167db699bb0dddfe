"""What a setting of the training is worth: models with and without it, of several seeds.

    make quickstart
    python benchmarks/ablation.py
    python benchmarks/ablation.py --changes "dropout=0.1" "copy_context=1" "use_copy=false"

For each seed one model learns with the settings as they are, and one with each change (several settings of one change
are separated by commas). Then they write titles of the test pairs in every way. Printed are ROUGE-L of each seed, its
mean, and the difference to the settings as they are: with its standard error over the seeds, and with a paired
bootstrap over the pairs, of whose scores the mean over the seeds is taken; of the words that the reference took from
the document, the share that is written, of those outside the vocabulary and of others; and the processor time of a
training. A run that was stopped goes on when the same command is given again; each model and its titles are a file of
their own.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import yaml
from comparison import machine
from half_precision import format_row
from seeds import train_seed
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.evaluation import available_systems, predict
from bidir_seq2seq.metrics import pair_scores, paired_bootstrap

AS_THEY_ARE = "as they are"


@dataclass
class AblationArguments:
    settings: str = field(
        default="scripts/quickstart.yaml", metadata={"help": "Settings of the training, as for scripts/train.py."}
    )
    test_file: str = field(default="quickstart/data/test.jsonl", metadata={"help": "Pairs with the references."})
    output_dir: str = field(default="output/ablation", metadata={"help": "Folder for models and results."})
    changes: list[str] = field(
        default_factory=lambda: ["use_copy=false"], metadata={"help": "What is changed, each by itself."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, of each all models."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first so many test pairs."})
    num_beams: int = field(default=3, metadata={"help": "Beams per direction."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})


def settings_of(change: str) -> dict:
    """`"a=1,b=x"` as settings.

    Raises:
        ValueError: If it is not of that form.
    """
    if change == AS_THEY_ARE:
        return {}
    parts = [part.split("=", 1) for part in change.split(",")]
    if any(len(part) != 2 for part in parts):
        raise ValueError(f"changes={change!r} must read name=value, or name=value,name=value")
    return {name.strip(): yaml.safe_load(value) for name, value in parts}


def run(arguments: AblationArguments, pairs, seed: int, change: str) -> dict:
    """Trains one model and writes its titles in every way that it can."""
    folder = Path(arguments.output_dir) / f"seed-{seed}-{change.replace(' ', '_')}"
    start = time.process_time()
    train_seed(arguments.settings, folder, seed, **settings_of(change))
    seconds = time.process_time() - start
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    systems = [name for name in available_systems(model) if name != "lead"]
    titles = predict(model, tokenizer, pairs, systems, progress=False, num_beams=arguments.num_beams)
    return {
        "seconds": seconds,
        "titles": titles,
        "taken": {system: taken_words_written(tokenizer, pairs, written) for system, written in titles.items()},
    }


def taken_words_written(tokenizer, pairs, titles: list[str]) -> dict[str, list[int]]:
    """Of the words that stand in a document and in its reference, how many stand in the title, and how many there are:
    of those outside the vocabulary (`unknown`), by their letters, and of others (`known`), by their ids. A word that
    occurs twice in one text counts once."""

    def words(text: str | None) -> tuple[set[str], set[int]]:
        encoded = tokenizer(text or "", return_offsets_mapping=True, add_special_tokens=False)
        places = list(zip(encoded["input_ids"], encoded["offset_mapping"]))
        unknown = {text[start:end] for token, (start, end) in places if token == tokenizer.unk_token_id}
        return unknown, {token for token, _ in places} - {tokenizer.unk_token_id}

    texts = [[words(text) for text in column] for column in (pairs["source"], pairs["target"], titles)]
    counts = {}
    for index, name in enumerate(("unknown", "known")):
        of_kind = [[text[index] for text in column] for column in texts]
        rows = [(len(source & target & title), len(source & target)) for source, target, title in zip(*of_kind)]
        counts[name] = [sum(column) for column in zip(*rows)]
    return counts


def report(
    runs: dict[tuple[int, str], dict], seeds: list[int], changes: list[str], references: list[str]
) -> list[dict]:
    """Prints ROUGE-L of all runs, by seed and change, and returns their figures."""
    rows = []
    heading = "".join(f"{f'seed {seed}':>9}" for seed in seeds) + f"{'mean':>9}{'difference':>19}"
    print(f"\n{'ROUGE-L':32}{heading}  over the pairs")
    for system in next(iter(runs.values()))["titles"]:
        first = None
        for change in changes:
            if any(system not in runs[seed, change]["titles"] for seed in seeds):
                continue
            scores = [pair_scores(runs[seed, change]["titles"][system], references)["rougeL"] for seed in seeds]
            by_seed, by_pair = [[statistics.mean(x) for x in table] for table in (scores, zip(*scores))]
            line = format_row(f"{system:6}{change}", by_seed, first and first[0], digits=2)
            row = {"system": system, "change": change, "rougeL": by_seed}
            if first is None:
                first = by_seed, by_pair
            else:
                test = paired_bootstrap(by_pair, first[1])
                row |= asdict(test)
                line += f"  [{test.low:+.2f}, {test.high:+.2f}] p={test.p_value:.4f}"
            taken = [runs[seed, change]["taken"][system] for seed in seeds]
            for name in ("unknown", "known"):
                written, wanted = map(sum, zip(*(counts[name] for counts in taken)))
                if wanted and sum(counts["unknown"][1] for counts in taken):
                    row[f"{name}_written"] = written / wanted
                    line += f"  {written} of {wanted} {name} words ({written / wanted:.0%})"
            rows.append(row)
            print(line)
    print(f"\n{'processor seconds of training':32}{heading}")
    for change in changes:
        seconds = [runs[seed, change]["seconds"] for seed in seeds]
        rows.append({"change": change, "seconds": seconds})
        print(format_row(change, seconds, None, digits=0))
    return rows


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(AblationArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    changes = [AS_THEY_ARE, *arguments.changes]
    for change in changes:
        settings_of(change)
    pairs = load_pairs({"test": arguments.test_file})["test"]
    pairs = pairs.select(range(min(arguments.max_samples or len(pairs), len(pairs))))
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    # What runs that are compared have in common.
    settings = {name: getattr(arguments, name) for name in ("settings", "test_file", "max_samples", "num_beams")}
    runs = {}
    for seed in arguments.seeds:
        for change in changes:
            file = output_dir / f"seed-{seed}-{change.replace(' ', '_')}.json"
            if not file.exists():
                result = {"arguments": settings, **run(arguments, pairs, seed, change)}
                file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            runs[seed, change] = json.loads(file.read_text(encoding="utf-8"))
            if runs[seed, change]["arguments"] != settings:
                raise ValueError(
                    f"{file} has other settings, {runs[seed, change]['arguments']}: choose another output_dir"
                )
    rows = report(runs, arguments.seeds, changes, [text or "" for text in pairs["target"]])
    results = {"machine": machine(), "arguments": asdict(arguments), "results": rows}
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
