"""What a vocabulary shortlist saves and what it changes, for one or more trained models and their test pairs.

    make quickstart
    python benchmarks/shortlist.py --model_name_or_path quickstart/model --test_file quickstart/data/test.jsonl
    python benchmarks/shortlist.py --seeds 0 1 2 3 4 5 --test_file quickstart/data/test.jsonl

Writes the titles of the test pairs in each direction, with the whole vocabulary and with `vocabulary_shortlist` at
several lengths. For each length: ROUGE-L in percent and its difference to the whole vocabulary, with the 95 % interval
and p-value of a paired bootstrap over the pairs; the share of titles that differ in anything; and how many times as
fast it was, in seconds of the processor. Of several models, such as several seeds of a training, everything is the
mean, and the difference comes with its standard error over the models: a list decides between titles that are nearly
as likely, so what it changes in one model is mostly chance. With --seeds the models are trained first, some minutes
each; what is there already is not trained again.
"""

import itertools
import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from comparison import machine
from seeds import train_seed
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import bidir_seq2seq  # noqa: F401  (registers the model with the Auto classes)
from bidir_seq2seq.allocator import keep_freed_memory
from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.evaluation import available_systems, predict
from bidir_seq2seq.metrics import pair_scores, paired_bootstrap


@dataclass
class ShortlistArguments:
    test_file: str = field(metadata={"help": "Pairs with the references: .json(l), .csv or .tsv."})
    model_name_or_path: list[str] | None = field(
        default=None, metadata={"help": "Trained models, such as one for each seed."}
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Instead: seeds, with each of which to train one."}
    )
    settings: str = field(
        default="scripts/quickstart.yaml", metadata={"help": "Settings of that training, as for scripts/train.py."}
    )
    vocab_size: int = field(default=8000, metadata={"help": "Their vocabulary, instead of that of the settings."})
    output_dir: str = field(default="output/shortlist", metadata={"help": "Folder for the models trained here."})
    sizes: list[int] = field(
        default_factory=lambda: [500, 1000, 2000], metadata={"help": "Lengths of the list to try."}
    )
    systems: list[str] | None = field(
        default=None, metadata={"help": "Of l2r, r2l, both, joint. Default: all that the model can run."}
    )
    source_column: str | None = field(default=None, metadata={"help": "Column of documents. Default: the first."})
    target_column: str | None = field(default=None, metadata={"help": "Column of references. Default: the second."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first so many pairs."})
    num_beams: int = field(default=3, metadata={"help": "Beams per direction."})
    batch_size: int = field(default=64, metadata={"help": "Documents per batch."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})


def model_folders(arguments: ShortlistArguments) -> list[str]:
    """Where the models are, trained first if seeds are given."""
    if bool(arguments.model_name_or_path) == bool(arguments.seeds):
        raise ValueError("pass either --model_name_or_path, models that are trained, or --seeds, to train some first")
    if arguments.model_name_or_path:
        return arguments.model_name_or_path
    folders = [Path(arguments.output_dir) / f"seed-{seed}" for seed in arguments.seeds]
    for folder, seed in zip(folders, arguments.seeds):
        train_seed(arguments.settings, folder, seed, vocab_size=arguments.vocab_size)
    return [str(folder) for folder in folders]


def mean_of_all(table: Iterable[Iterable[float]]) -> float:
    """The mean of figures of each model and pair."""
    return statistics.mean(itertools.chain.from_iterable(table))


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(ShortlistArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    models = [
        (AutoModelForSeq2SeqLM.from_pretrained(name, use_safetensors=True), AutoTokenizer.from_pretrained(name))
        for name in model_folders(arguments)
    ]
    columns = {"source_column": arguments.source_column, "target_column": arguments.target_column}
    pairs = load_pairs({"test": arguments.test_file}, **columns)["test"]
    pairs = pairs.select(range(min(arguments.max_samples or len(pairs), len(pairs))))
    references = [text or "" for text in pairs["target"]]

    def write(system: str, **flags) -> tuple[list[list[str]], list[list[float]], float]:
        """The titles of each model, their scores, and the seconds that all took."""
        start = time.process_time()
        settings = {"num_beams": arguments.num_beams, "batch_size": arguments.batch_size, **flags}
        titles = [predict(model, tokenizer, pairs, [system], **settings)[system] for model, tokenizer in models]
        seconds = time.process_time() - start
        return titles, [pair_scores(texts, references)["rougeL"] for texts in titles], seconds

    rows = []
    vocab_size, plain_systems = models[0][0].config.vocab_size, available_systems(models[0][0])[1:]
    print(f"{len(pairs)} pairs, {len(models)} models, vocabulary of {vocab_size}, {arguments.num_beams} beams")
    print(
        f"{'system':8}{'words':>7}{'ROUGE-L':>9}{'difference':>16}{'interval':>18}{'p':>8}{'changed':>9}{'times':>7}"
    )
    for system in arguments.systems or plain_systems:
        whole, whole_scores, whole_seconds = write(system)
        print(f"{system:8}{vocab_size:7}{mean_of_all(whole_scores):9.2f}", flush=True)
        for size in arguments.sizes:
            titles, scores, seconds = write(system, vocabulary_shortlist=size)
            # Of each pair the mean over the models.
            test = paired_bootstrap(*([statistics.mean(x) for x in zip(*table)] for table in (scores, whole_scores)))
            row = {
                "system": system,
                "vocabulary_shortlist": size,
                "rougeL": mean_of_all(scores),
                **asdict(test),
                "by_model": [
                    statistics.mean(own) - statistics.mean(first) for own, first in zip(scores, whole_scores)
                ],
                "changed": mean_of_all(
                    [a != b for a, b in zip(own, first, strict=True)] for own, first in zip(titles, whole)
                ),
                "times": whole_seconds / seconds,
            }
            rows.append(row)
            difference, interval = f"{test.difference:+.2f}", f"[{test.low:+.2f}, {test.high:+.2f}]"
            if len(models) > 1:
                difference += f" ± {statistics.stdev(row['by_model']) / len(models) ** 0.5:.2f}"
            print(
                f"{system:8}{size:7}{row['rougeL']:9.2f}{difference:>16}{interval:>18}{test.p_value:8.4f}"
                f"{row['changed']:9.1%}{row['times']:7.2f}",
                flush=True,
            )
    if arguments.output:
        report = {"machine": machine(), "arguments": asdict(arguments), "results": rows}
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
