"""Whose titles are best after so many seconds of one core: ours, OpenNMT-py's with copies, or a small BART's.

    python benchmarks/quality.py --setup
    python benchmarks/quality.py --data_dir DATA --data xwlb_brief multi30k_en_de --tune 200
    python benchmarks/quality.py --data_dir DATA --data xwlb_brief multi30k_en_de --budgets 600 1800
    python benchmarks/quality.py

The first makes OpenNMT-py's environment. The second tries `CANDIDATES` of each system for so many seconds on
`DATA/NAME/train.jsonl` and notes whose titles of 300 validation pairs are best. The third trains what is missing and
leaves a file of figures for each run in `benchmarks/quality/results/`, with the scores of every pair of
`DATA/NAME/test.jsonl` and no text; a run whose file is there, with the options chosen, is not made again. The last,
without data, prints the table from these files and draws the plot.

"ours" has the directions that `train` gives it for these pairs. `VARIANTS` differ from ours or OpenNMT-py in one thing
and have the rest as it was chosen: "twins" and "one direction" (whose updates are cheaper) in how many decoders they
have, "ours wide" and "OpenNMT-py narrow" in their width, and "OpenNMT-py constant" has a learning rate that stays, as
its own command line has none that falls when so many seconds are over; here OpenNMT-py has one, as ours and BART do,
if it is better by it. All but those of another width have the same one and the same tokens, and BART as many layers as
give about as many parameters. A budget is of the training alone, in processor seconds of one thread: making batches
counts, starting and writing titles does not. Ours goes by the clock (`--max_train_minutes`), and so needs a core of
its own. Each searches in the ways of `WAYS`; the table has them all.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from comparison import DRIVERS, ROOT, machine, python_of, set_up
from study import METRICS, over_seeds, scores_of, write
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import encode_pairs, load_pairs
from bidir_seq2seq.evaluation import listed_references, load_test_pairs
from bidir_seq2seq.metrics import bleu_of_counts, paired_bootstrap
from bidir_seq2seq.recipe import DROPOUT
from bidir_seq2seq.training import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    load_or_build_tokenizer,
    train,
)

QUALITY = Path(__file__).parent / "quality"
RESULTS = QUALITY / "results"
# What a user has to say of the data: its tokens, and the width that all three have.
SETTINGS: dict[str, dict] = {
    "xwlb_brief": {"tokenizer_type": "char", "vocab_size": 8000, "min_frequency": 10},
    "csl": {"tokenizer_type": "char", "vocab_size": 8000, "min_frequency": 10},
    "multi30k_en_de": {
        "tokenizer_type": "bpe",
        "vocab_size": 6000,
        "min_frequency": 2,
        "hidden_size": 256,
        "embedding_size": 256,
    },
}
CANDIDATES: dict[str, list[dict]] = {
    "ours": [
        {"learning_rate": rate, "per_device_train_batch_size": size, **more}
        for rate, size, more in (
            (1e-3, 64, {}),
            (2e-3, 64, {}),
            (2e-3, 32, {}),
            # As `train` proposes where the processor has it.
            (2e-3, 32, {"bf16": True}),
        )
    ],
    "OpenNMT-py": [
        {"optim": "adam", "learning_rate": rate, "global_attention": "mlp", "dropout": 0.0, "batch_size": size, **more}
        for rate, size, more in (
            (1e-3, 64, {}),
            (2e-3, 64, {}),
            (2e-3, 32, {}),
            # A rate that falls at the end, as ours does: it has none for a training of so many seconds.
            (2e-3, 64, {"falling_share": 0.2}),
            (2e-3, 32, {"falling_share": 0.2}),
        )
    ],
    "BART": [
        {"learning_rate": rate, "dropout": 0.0, "per_device_train_batch_size": size, **more}
        for rate, size, more in ((1e-3, 64, {}), (2e-3, 64, {}), (1e-3, 32, {}), (1e-3, 64, {"bf16": True}))
    ],
}
WIDTH, WIDE = 128, 256
# `train` proposes bfloat16 where the processor has it; a wide model gains more by it.
OURS_WIDE = {"hidden_size": WIDE, "embedding_size": WIDE, "bf16": True}
# Others that have what one of these has, and some of it otherwise.
VARIANTS: dict[str, tuple[str, dict]] = {
    "twins": ("ours", {"decoder_directions": "both"}),
    "one direction": ("ours", {"decoder_directions": "l2r"}),
    "ours wide": ("ours", OURS_WIDE),
    "OpenNMT-py constant": ("OpenNMT-py", {"falling_share": 0.0}),
    "OpenNMT-py narrow": ("OpenNMT-py", {"hidden_size": WIDTH}),
}
SYSTEMS = (*CANDIDATES, *VARIANTS)
OURS = {
    "default": {},
    "l2r": {"decoding_direction": "l2r", "num_beams": 3},
    # As many as twins draw together.
    "l2r, drawn": {
        "decoding_direction": "l2r",
        "proposals": "l2r+drawn",
        "ranking": "consensus",
        "consensus_samples": 32,
        "num_beams": 3,
    },
}
SPLICED = {"proposals": "l2r+r2l+drawn+spliced", "num_beams": 3}
TWINS = {
    **OURS,
    "l2r+r2l, joint": {"proposals": "l2r+r2l", "ranking": "joint", "num_beams": 3},
    "l2r+r2l, drawn": {"proposals": "l2r+r2l+drawn", "ranking": "consensus", "num_beams": 3},
    "l2r+r2l, spliced": {**SPLICED, "ranking": "consensus"},
    # Four times as many, and how probable they are to both directions.
    "spliced, 64 each": {**SPLICED, "consensus_samples": 64, "ranking": {"consensus": 1, "l2r": 0.05, "r2l": 0.05}},
}
# Of ours those of twins are left out where there are none.
WAYS: dict[str, dict[str, dict]] = {
    "ours": TWINS,
    "OpenNMT-py": {
        "beam 3": {"beam_size": 3},
        "beam 5, mean": {"beam_size": 5, "length_penalty": "avg"},
    },
    "BART": {"beam 3, mean": {"num_beams": 3}, "beam 5, sum": {"num_beams": 5, "length_penalty": 0.0}},
}
# From about so many seconds on OpenNMT-py sees each pair five times.
DROPOUT_FROM = {"xwlb_brief": 3300, "csl": 600, "multi30k_en_de": 2200}
# In an hour a model of width 128 has learned what it can of these pairs, and a wider one learns more.
WIDE_FROM = {"xwlb_brief": 3300}
# The updates from which the time of an update is taken: a whole pool of batches of all lengths, twice.
TRIAL_UPDATES = 100
HEADING = (
    f"{'budget':>6} {'system':22}{'way':16}{'seeds':>5}{'mean':>8}{'first4':>8}{'last4':>8}"
    f"{'updates':>9}{'seconds':>9}{'search s':>10}{'parameters':>12}"
)


def base_of(system: str) -> str:
    """The system of `CANDIDATES` that a system is, or is a variant of."""
    return VARIANTS[system][0] if system in VARIANTS else system


@dataclass
class QualityArguments:
    setup: bool = field(default=False, metadata={"help": "Make OpenNMT-py's environment, and do nothing else."})
    peers_dir: str = field(default=str(ROOT / ".peers"), metadata={"help": "Folder of that environment."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of data sets. Default: none; the table is made from the results."}
    )
    data: list[str] = field(default_factory=lambda: ["xwlb_brief"], metadata={"help": "Which data sets."})
    systems: list[str] = field(
        default_factory=lambda: list(CANDIDATES),
        metadata={
            "help": f"Who learns: {', '.join(SYSTEMS)}. Those that differ in one thing from another "
            "are tuned as that is."
        },
    )
    budgets: list[int] = field(
        default_factory=lambda: [600, 1800], metadata={"help": "Processor seconds of the training, ascending."}
    )
    tune: int | None = field(
        default=None, metadata={"help": "Try each system's candidates for so many seconds, and do nothing else."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds."})
    output_dir: str = field(default="output/quality", metadata={"help": "Folder for models."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})

    def __post_init__(self):
        for name, allowed in (("systems", SYSTEMS), ("data", SETTINGS)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"{name}={value!r} must be some of {', '.join(allowed)}")
        if self.budgets != sorted(set(self.budgets)):
            raise ValueError(f"budgets={self.budgets} must ascend")


@dataclass
class Job:
    """What is to be learned: a data set, the candidate's options, and for how many seconds."""

    data: str
    system: str
    files: dict[str, str]
    options: dict
    budget: int
    seed: int
    folder: Path
    arguments: QualityArguments

    @property
    def hidden_size(self) -> int:
        """What it is for this budget, else for this data set, else for all."""
        return self.options.get("hidden_size", SETTINGS[self.data].get("hidden_size", WIDTH))


class Budget(TrainerCallback):
    """Stops a training after so many processor seconds of it, and knows how many there were."""

    def __init__(self, seconds: float):
        self.seconds, self.spent, self.updates = seconds, 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.spent, self.updates = time.process_time() - self.start, state.global_step
        if self.spent >= self.seconds:
            control.should_training_stop = True


def within(seconds: float, learn: Callable[[int, Budget], None], note: Path) -> Budget:
    """Trains for so long, with a schedule that ends there: of as many updates as the rate of a trial allows."""
    if not note.exists():
        trial = Budget(float("inf"))
        learn(TRIAL_UPDATES, trial)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(trial.spent / trial.updates), encoding="utf-8")
    budget = Budget(seconds)
    learn(round(seconds / json.loads(note.read_text(encoding="utf-8"))), budget)
    return budget


def learn_ours(job: Job) -> dict:
    """Trains ours, as `bidir-seq2seq train --max_train_minutes` does, whose trial is part of the budget."""
    folder = job.folder / str(job.budget)
    settings = {
        "hidden_size": WIDTH,
        **SETTINGS[job.data],
        **job.options,
        "train_file": job.files["train"],
        "output_dir": str(folder),
        "seed": job.seed,
        "max_train_minutes": job.budget / 60,
        # More than there is time for.
        "num_train_epochs": 1000.0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report": False,
        "use_cpu": True,
    }
    account = Budget(float("inf"))
    train(
        *HfArgumentParser((ModelArguments, DataArguments, TrainingArguments)).parse_dict(settings), callbacks=[account]
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True).eval()
    return written(model, AutoTokenizer.from_pretrained(folder), job, account)


def written(model, tokenizer, job: Job, budget: Budget) -> dict:
    """What a model has learned: its titles of the test pairs, in each way."""
    pairs = load_test_pairs(job.files["test"])
    ways, are_twins = {}, getattr(model.config, "decoder_directions", "l2r") == "both"
    for name, settings in WAYS[base_of(job.system)].items():
        if "proposals" in settings and not are_twins:
            continue
        titles, seconds = write([model], tokenizer, pairs, settings)
        ways[name] = {"titles": titles, "search_seconds": seconds}
    return {
        "seconds": budget.spent,
        "updates": budget.updates,
        "parameters": model.num_parameters(),
        "ways": ways,
    }


def learn_bart(job: Job) -> dict:
    """Trains a BART from nothing by transformers' own Trainer."""
    tokenizer = tokenizer_of(job)
    pairs = load_pairs({"train": job.files["train"]})["train"]
    encoded, _ = encode_pairs(pairs, tokenizer, 400, 64)
    options = dict(job.options)
    options.pop("hidden_size", None)
    size = job.hidden_size
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=size,
        # About as many parameters as twins have.
        encoder_layers=4,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=4 * size,
        decoder_ffn_dim=4 * size,
        max_position_embeddings=512,
        dropout=options.pop("dropout"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=None,
    )
    set_seed(job.seed)
    model = BartForConditionalGeneration(config)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def learn(updates: int, budget: Budget) -> None:
        model.load_state_dict(fresh)
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(job.folder / "unused"),
            max_steps=updates,
            train_sampling_strategy="group_by_length",
            lr_scheduler_type="linear",
            warmup_steps=min(200, updates // 10),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            seed=job.seed,
            dataloader_pin_memory=False,
            **options,
        )
        Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=encoded,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            callbacks=[budget],
        ).train()

    budget = within(job.budget, learn, job.folder / "rate.json")
    model.generation_config.max_length = 65
    return written(model.eval(), tokenizer, job, budget)


def tokenizer_of(job: Job):
    """The tokenizer that our training makes of these pairs, kept for the others."""
    folder = job.folder.parent / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        names = ("tokenizer_type", "vocab_size", "min_frequency")
        options = {name: value for name, value in SETTINGS[job.data].items() if name in names}
        pairs = load_pairs({"train": job.files["train"]})["train"]
        load_or_build_tokenizer(ModelArguments(**options), DataArguments(), pairs, str(folder))
    return AutoTokenizer.from_pretrained(folder)


def learn_opennmt(job: Job) -> dict:
    """Trains OpenNMT-py's LSTM with copies, in its own environment."""
    tokenizer = tokenizer_of(job)
    by_character = SETTINGS[job.data]["tokenizer_type"] == "char"

    def tokens(text: str | None, length: int) -> str:
        # It keeps words that the vocabulary does not have, and copies them, as ours does.
        parts = list(text or "") if by_character else tokenizer.tokenize(text or "")
        return " ".join("▁" if part.isspace() else part for part in parts[:length]) or "▁"

    def text(title: str) -> str:
        if by_character:
            return "".join(title.split(" ")).replace("▁", " ").strip()
        return tokenizer.convert_tokens_to_string(title.split(" ")).strip() if title else ""

    job.folder.mkdir(parents=True, exist_ok=True)
    options = dict(job.options)
    options.pop("hidden_size", None)
    files = {}
    for split in ("train", "test"):
        pairs = load_pairs({"train": job.files[split]})["train"]
        rows = [[tokens(row["source"], 399), tokens(row["target"], 63)] for row in pairs if row["target"]]
        files[split] = str(job.folder / f"{split}.jsonl")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(files[split]).write_text(lines, encoding="utf-8")
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])[4:]
    task = {
        **files,
        "vocab": list(dict.fromkeys("▁" if token.isspace() else token for token, _ in vocab)),
        "hidden_size": job.hidden_size,
        "num_layers": 2,
        "batch_size": options.pop("batch_size"),
        "falling_share": options.pop("falling_share", 0.0),
        "options": options,
        "ways": WAYS[base_of(job.system)],
        "budget": job.budget,
        "max_length": 64,
        "seed": job.seed,
        "threads": job.arguments.threads,
    }
    task_file = job.folder / "job.json"
    task_file.write_text(json.dumps(task), encoding="utf-8")
    program = DRIVERS / "opennmt_copy.py"
    command = [str(python_of(job.arguments.peers_dir, "opennmt_lstm")), str(program), str(task_file)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    found = json.loads(answer)
    for way in found["ways"].values():
        way["titles"] = [text(title) for title in way["titles"]]
    return {name: found[name] for name in ("seconds", "updates", "parameters", "ways")}


LEARN: dict[str, Callable[[Job], dict]] = {
    "ours": learn_ours,
    "OpenNMT-py": learn_opennmt,
    "BART": learn_bart,
}


def chosen_options(data: str, system: str, budget: int) -> dict:
    """What `tune` has found best; from five passes on the dropout that ours has then; and the width of an hour."""
    if system in VARIANTS:
        base, changes = VARIANTS[system]
        return chosen_options(data, base, budget) | changes
    chosen = RESULTS / data / f"{system}-tuned.json"
    if not chosen.exists():
        raise ValueError(f"{chosen} is missing: choose among the candidates with --tune SECONDS first")
    options = json.loads(chosen.read_text(encoding="utf-8"))["options"]
    if "dropout" in options and budget >= DROPOUT_FROM[data]:
        options["dropout"] = DROPOUT
    if budget >= WIDE_FROM.get(data, math.inf):
        options |= OURS_WIDE if system == "ours" else {"hidden_size": WIDE}
    return options


def run(arguments: QualityArguments, data: str, system: str, seed: int, budget: int) -> None:
    """Trains a system for so long, unless there is a file of the options chosen, and writes the file."""
    options = chosen_options(data, system, budget)
    result_file = RESULTS / data / f"{system}-{budget}-{seed}.json"
    if result_file.exists() and json.loads(result_file.read_text(encoding="utf-8"))["options"] == options:
        return
    folder = Path(arguments.data_dir) / data
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    where = Path(arguments.output_dir) / data / f"{system}-{seed}"
    references = listed_references(load_test_pairs(files["test"]))
    found = LEARN[base_of(system)](Job(data, system, files, options, budget, seed, where, arguments))
    ways = {
        name: {"search_seconds": way["search_seconds"], **scores_of(data, way["titles"], references)}
        for name, way in found["ways"].items()
    }
    result = {"data": data, "system": system, "seed": seed, "budget": budget, **found, "ways": ways}
    save(result_file, result | {"options": options, "machine": machine()})


def tune(arguments: QualityArguments, data: str, system: str) -> None:
    """Tries the candidates of a system on validation pairs and notes the best."""
    chosen = RESULTS / data / f"{system}-tuned.json"
    before = json.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {"tried": []}
    tried = before["tried"]
    if tried and before["seconds"] != arguments.tune:
        raise ValueError(f"{chosen} is of {before['seconds']} seconds, not {arguments.tune}: delete it first")
    done = [row["options"] for row in tried]
    if all(options in done for options in CANDIDATES[system]):
        return
    folder, where = Path(arguments.data_dir) / data, Path(arguments.output_dir) / data
    where.mkdir(parents=True, exist_ok=True)
    lines = (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    validation = where / "validation.jsonl"
    validation.write_text("".join(lines[:300]), encoding="utf-8")
    files = {"train": str(folder / "train.jsonl"), "test": str(validation)}
    references = listed_references(load_test_pairs(files["test"]))
    for number, options in enumerate(CANDIDATES[system]):
        if options in done:
            continue
        job = Job(data, system, files, options, arguments.tune, 0, where / f"{system}-tune-{number}", arguments)
        found = LEARN[system](job)
        metric = METRICS.get(data, "rougeL")
        best = max(scores_of(data, way["titles"], references)[metric] for way in found["ways"].values())
        tried.append({"options": options, "updates": found["updates"], metric: best})
    best = max(tried, key=lambda row: row[metric])
    save(chosen, {"options": best["options"], "seconds": arguments.tune, "tried": tried})


def save(file: Path, result: dict) -> None:
    """Writes a result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".unfinished")
    aside.write_text(json.dumps(result) + "\n", encoding="utf-8")
    aside.rename(file)


def report(plot_file: Path) -> None:
    """Prints a table of each data set from the results, and draws the best way of each system against time.

    Ours is drawn as it writes if nothing is said, and beside it by titles drawn from both ends.
    """
    results: dict[str, dict[int, dict[str, dict[int, dict]]]] = {}
    for file in RESULTS.glob("*/*-[0-9]*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        of_budget = results.setdefault(found["data"], {}).setdefault(found["budget"], {})
        of_budget.setdefault(found["system"], {})[found["seed"]] = found
    if not results:
        print(f"no results in {RESULTS}: give --data_dir")
        return
    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 3.6), squeeze=False, layout="constrained")
    for axis, (data, budgets) in zip(axes[0], sorted(results.items())):
        metric = METRICS.get(data, "rougeL")
        curves: dict[str, list[tuple[float, float]]] = {}
        print(f"\n{data}: {metric}\n{HEADING}   ours, as it writes by default, beside it")
        for budget, systems in sorted(budgets.items()):
            ours = over_seeds(data, systems["ours"], "default")[1] if "ours" in systems else None
            for system, runs in sorted(systems.items(), key=lambda item: SYSTEMS.index(item[0])):
                ways = next(iter(runs.values()))["ways"]
                rows = {way: row_of(data, runs, way, ours if system != "ours" else None) for way in ways}
                for way, (_, line) in rows.items():
                    print(f"{budget:6} {system:22}{way:16}{line}")
                best = rows["default"][0] if "default" in rows else max(mean for mean, _ in rows.values())
                curves.setdefault(system, []).append((budget / 60, best))
                if "l2r+r2l, drawn" in rows:
                    curves.setdefault(f"{system}, drawn", []).append((budget / 60, rows["l2r+r2l, drawn"][0]))
        for number, system in enumerate(CANDIDATES):
            for name, style in ((system, "-"), (f"{system}, drawn", ":")):
                if name in curves:
                    axis.plot(*zip(*curves[name]), style, marker="o", label=name, color=f"C{number}")
        axis.set(title=data, xlabel="training, minutes of one core", ylabel={"bleu": "BLEU"}.get(metric, "ROUGE-L"))
        axis.set_xlim(left=0)
        axis.legend()
    figure.savefig(plot_file, dpi=110)
    print(f"\nplot: {plot_file}")


def row_of(data: str, runs: dict[int, dict], way: str, ours: list | None) -> tuple[float, str]:
    """A way's mean over the seeds, and its line of the table."""
    figures, by_pair = over_seeds(data, runs, way)
    found = [run["ways"][way] for run in runs.values()]
    mean = statistics.mean(figures)
    line = f"{len(figures):5}{mean:8.2f}"
    for edge in ("first4", "last4"):
        line += f"{statistics.mean(row[edge] for row in found):8.1f}"
    for name in ("updates", "seconds"):
        line += f"{statistics.mean(run[name] for run in runs.values()):9.0f}"
    line += f"{statistics.mean(row['search_seconds'] for row in found):10.0f}"
    line += f"{next(iter(runs.values()))['parameters']:12,}"
    if ours is not None:
        statistic = bleu_of_counts if METRICS.get(data) == "bleu" else None
        test = paired_bootstrap(ours, by_pair, statistic=statistic)
        line += f"   {test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}] p={test.p_value:.4f}"
    return mean, line


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(QualityArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    if arguments.setup:
        set_up(arguments.peers_dir, ["opennmt_lstm"])
        return
    for seed in arguments.seeds if arguments.data_dir else []:
        for data in arguments.data:
            for system in arguments.systems:
                if arguments.tune is not None:
                    tune(arguments, data, base_of(system))
                    continue
                for budget in arguments.budgets:
                    run(arguments, data, system, seed, budget)
    if arguments.tune is None:
        report(ROOT / "docs" / "images" / "quality.png")


if __name__ == "__main__":
    main()
