"""What two directions are worth: how they are trained, and how their titles are proposed and ranked, beside one.

    python benchmarks/study.py --data_dir DATA --data xwlb_brief csl --recipes twin l2r --seeds 0 1 2
    python benchmarks/study.py

The first trains: `DATA/NAME/{train,validation,test}.jsonl` with the settings `benchmarks/study/NAME.yaml`, a model for
each recipe and seed, and has each write the test set in every way that it can. Each run leaves one file of figures,
`benchmarks/study/results/NAME/RECIPE-SEED.json`, with the scores of every pair and no text; a run whose file is there
is not made again, so that several machines add to one study. The second, without data, prints tables from these files
alone: each way's mean over the seeds, and its difference to the best beam of one direction in the same processor time
(and of a way that draws titles, or splices them, to what one direction makes of its own), with a paired bootstrap over
the pairs, of whose scores the mean over the seeds is taken. A training that was stopped goes on from its newest
checkpoint; its processor time is then not known.

Another study is another folder of settings, which gets results of its own: `benchmarks/strong` is that of long
trainings, whose settings are taken as they are (`--study_dir benchmarks/strong --recipes settled`), and
`benchmarks/ten_passes` of as many passes as `train` makes if nothing is said.

Recipes have equal processor time, give or take what the table says: one direction makes more updates in it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sacrebleu
import torch
import yaml
from comparison import machine
from ensemble import ensemble_generate
from seeds import parsed, seed_settings, train_seed
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.commands.distil import (
    TITLES,
    DistillationArguments,
    Sources,
    write_pseudo_titles,
    write_training_pairs,
)
from bidir_seq2seq.commands.partners import PartnerArguments, write_partners
from bidir_seq2seq.commands.retrieve import RetrieveArguments, retrieve
from bidir_seq2seq.evaluation import listed_references, load_test_pairs
from bidir_seq2seq.metrics import TitleScore, bleu_of_counts, pair_scores, paired_bootstrap, pronunciation_scores
from bidir_seq2seq.pipeline import BidirSeq2SeqPipeline
from bidir_seq2seq.training import DataArguments
from bidir_seq2seq.unknown_words import decode

# What is measured of each data set, of each pair; and, where it has several references, their column.
METRICS = {"multi30k_en_de": "bleu", "cmudict_g2p": "wer"}
REFERENCES = {"cmudict_g2p": ["references"]}
# One direction makes so many times the updates of two in the same time, as measured (`seconds` in the results).
ONE_DIRECTION = 1.6
SAVES = {"save_strategy": "steps", "save_steps": 1000, "save_total_limit": 1}
SECOND_STAGE = {"learning_rate": 7e-4, "warmup_steps": 20}
LAST_STAGE = {"learning_rate": 3e-4, "warmup_steps": 10}
# Changes to the settings, the share of the updates, and how many models write together. What twins read is always
# said, so that a recipe stays what it is when a default changes.
RECIPES: dict[str, tuple[dict, float, int]] = {
    "settled": ({}, 1, 1),
    # As many updates again, from what the first ones have come to.
    "settled-again": ({}, 1, 1),
    # And half as many, in the same time, that read each pair twice.
    "settled-twice": ({"r_drop": 5.0}, 0.5, 1),
    # Each direction reads by itself; fewer updates, in about the same time.
    "own-encoders": ({"twin_partner": "none", "share_encoder": False}, 0.75, 1),
    # And half as many again.
    "own-encoders-again": ({"twin_partner": "none", "share_encoder": False}, 0.4, 1),
    "l2r": ({"decoder_directions": "l2r"}, ONE_DIRECTION, 1),
    "two-l2r": ({"decoder_directions": "l2r"}, ONE_DIRECTION / 2, 2),
    "independent": ({"twin_partner": "none"}, 1, 1),
    "twin": ({"twin_partner": "gold"}, 1, 1),
    "leaking": ({"twin_partner": "gold", "twin_dropout": 0.0}, 1, 1),
    "own": ({"twin_partner": "own"}, 1, 1),
    "own-last": ({"twin_partner": "gold", "own_partner_share": 0.2}, 1, 1),
    "alone-own": ({"twin_partner": "none", "own_partner_share": 0.2}, 1, 1),
    "repaired": ({"twin_partner": "own", **SECOND_STAGE}, 0.2, 1),
    # A second stage of decoders that have learned alone: beside own writing, and beside what earlier models wrote, who
    # have learned other pairs, or the same ones.
    "own-stage": ({"twin_partner": "own", **SECOND_STAGE}, 0.2, 1),
    "two-stage": ({"twin_partner": "written", **SECOND_STAGE}, 0.2, 1),
    "two-stage-leaking": ({"twin_partner": "written", **SECOND_STAGE}, 0.2, 1),
    # A last stage of as many updates: by the ordinary loss, and by whole titles.
    "l2r-more": ({"decoder_directions": "l2r", **LAST_STAGE}, 0.15, 1),
    "l2r-risk": ({"decoder_directions": "l2r", **LAST_STAGE, "sequence_objective": "risk"}, 0.15, 1),
    "l2r-beam": ({"decoder_directions": "l2r", **LAST_STAGE, "sequence_objective": "beam"}, 0.15, 1),
    # One direction that learns from the pairs and from twins' best titles of the same documents, pair for pair.
    "distilled": ({"decoder_directions": "l2r"}, ONE_DIRECTION, 1),
    "distilled-drawn": ({"decoder_directions": "l2r"}, ONE_DIRECTION, 1),
    # One direction that learns, beside the true words, what several twins hold each next word to be.
    "soft": ({"decoder_directions": "l2r"}, ONE_DIRECTION, 1),
    # Documents with the most similar training pair behind them; and with fewer updates, for long trainings.
    "similar": ({"twin_partner": "none", "own_partner_share": 0.2}, 1, 1),
    "l2r-similar": ({"decoder_directions": "l2r"}, ONE_DIRECTION, 1),
    "l2r-similar-third": ({"decoder_directions": "l2r"}, 0.3 * ONE_DIRECTION, 1),
    "l2r-similar-sixth": ({"decoder_directions": "l2r"}, 0.15 * ONE_DIRECTION, 1),
}
# Recipes that go on from another one's model of the same seed, and that learn from its titles.
GOES_ON_FROM = {
    "repaired": "twin",
    "settled-again": "settled",
    "settled-twice": "settled",
    "own-encoders-again": "own-encoders",
    **dict.fromkeys(("own-stage", "two-stage", "two-stage-leaking"), "independent"),
    **dict.fromkeys(("l2r-more", "l2r-risk", "l2r-beam"), "l2r"),
}
# Into how many folds pairs are dealt out for those who write for a second stage.
FOLDS = {"two-stage": 2, "two-stage-leaking": 1}
TAUGHT_BY = {"distilled": "alone-own", "distilled-drawn": "alone-own"}
SOFT_TEACHERS, TEACHER_SEEDS = {"soft": "alone-own"}, (0, 1, 2)
# How the teacher writes for a recipe, or of a data set: else in the best way that is not much slower than others.
TEACHES_BY = {"distilled-drawn": "l2r+r2l, drawn", "multi30k_en_de": "l2r+r2l, joint"}
# How the most similar pair is found and put behind a document, where it is not as `retrieve` does it.
SIMILAR = {"cmudict_g2p": {"ngram_sizes": [2, 3], "template": " | {source} / {target}"}}
# As many titles as two directions draw.
BY_ITSELF = {"num_beams": 3, "ranking": "consensus", "consensus_samples": 64}
ALONE = {
    "l2r beam 3": {"num_beams": 3},
    "l2r beam 10": {"num_beams": 10},
    "l2r, drawn": {**BY_ITSELF, "proposals": "l2r+drawn"},
    "l2r, spliced": {**BY_ITSELF, "proposals": "l2r+drawn+spliced"},
}
DRAWN = {"proposals": "l2r+r2l+drawn", "consensus_samples": 32}
SPLICED = {**DRAWN, "proposals": "l2r+r2l+drawn+spliced"}
TWINS = {
    "l2r": {"decoding_direction": "l2r"},
    "r2l": {"decoding_direction": "r2l"},
    "both": {"ranking": "own"},
    "both, joint": {"ranking": "joint"},
    "l2r+r2l, joint": {"proposals": "l2r+r2l", "ranking": "joint"},
    "all, joint": {"proposals": "l2r+r2l+both", "ranking": "joint"},
    # Of the candidates themselves, and of titles that both directions draw.
    "all, consensus": {"proposals": "l2r+r2l+both", "ranking": "consensus", "consensus_samples": 0},
    "l2r+r2l, drawn": {**DRAWN, "ranking": "consensus"},
    "l2r+r2l, spliced": {**SPLICED, "ranking": "consensus"},
    "spliced and joint": {**SPLICED, "ranking": {"consensus": 1, "l2r": 0.05, "r2l": 0.05}},
}


@dataclass
class StudyArguments:
    study_dir: str = field(
        default=str(Path(__file__).parent / "study"),
        metadata={"help": "Folder of a study: a file of settings for each data set, and its results."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of data sets. Default: none; tables are made from the results."}
    )
    data: list[str] = field(default_factory=lambda: ["xwlb_brief"], metadata={"help": "Which data sets."})
    recipes: list[str] = field(default_factory=lambda: ["l2r", "twin"], metadata={"help": "Which recipes."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each."})
    output_dir: str = field(default="output/study", metadata={"help": "Folder for models."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})


def ways_of(model, recipe: str) -> dict[str, dict]:
    """The ways of writing that a model has, by name, as settings of `generate`."""
    if model.config.decoder_directions != "both":
        return ALONE
    if recipe == "leaking":
        return {"both": TWINS["both"]}
    ways = {name: {"num_beams": 3, **settings} for name, settings in TWINS.items()}
    if model.config.twin_partner == "none":
        return {name: way for name, way in ways.items() if "both" not in name and "all" not in name}
    return ways


def write(models: Sequence, tokenizer, pairs, settings: dict) -> tuple[list[str], float]:
    """Titles of all pairs, and the processor seconds that writing took."""
    pipeline = BidirSeq2SeqPipeline(model=models[0], tokenizer=tokenizer)
    sources = [text or "" for text in pairs["source"]]
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]), reverse=True)
    titles, start = [""] * len(sources), time.process_time()
    for first in range(0, len(order), 64):
        some = order[first : first + 64]
        inputs, words = pipeline.batch([sources[index] for index in some])
        if len(models) > 1:
            written = ensemble_generate(models, inputs, settings["num_beams"])
        else:
            written = models[0].generate(**inputs, **settings)
        for index, known, ids in zip(some, words, written.tolist()):
            titles[index] = decode(tokenizer, ids, known, models[0].config.vocab_size)
    return titles, time.process_time() - start


def scores_of(data: str, titles: list[str], references: list[list[str]]) -> dict:
    """The figures of a way of writing, and of each pair what they are made of."""
    metric = METRICS.get(data, "rougeL")
    if metric == "wer":
        wrong = [pronunciation_scores([title], [listed], "word")["wer"] for title, listed in zip(titles, references)]
        return {**pronunciation_scores(titles, references, "word"), "by_pair": wrong}
    found = TitleScore().compute(predictions=titles, references=references)
    if metric == "bleu":
        bleu = sacrebleu.BLEU(effective_order=True)
        each = [bleu.sentence_score(title, listed) for title, listed in zip(titles, references)]
        by_pair = [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in each]
        return {**found, "bleu": float(bleu_of_counts(np.mean(by_pair, axis=0))), "by_pair": by_pair}
    return {**found, "by_pair": [round(x, 2) for x in pair_scores(titles, references)["rougeL"]]}


def train_model(arguments: StudyArguments, data: str, recipe: str, seed: int) -> tuple[Path, float]:
    """A model of a recipe, trained unless it is there already, as is the one that it goes on from or learns from.

    Returns:
        Its folder, and the processor seconds that all of it took.
    """
    changes, share, _ = RECIPES[recipe]
    settings_file, folder = Path(arguments.study_dir) / f"{data}.yaml", pairs_folder(arguments, data, recipe)
    all_updates = yaml.safe_load(settings_file.read_text(encoding="utf-8"))["max_steps"]
    updates = round(all_updates * share)
    output_dir = Path(arguments.output_dir) / data / f"{recipe}-{seed}"
    settings = {**changes, **SAVES, "max_steps": updates, "report": False}
    settings |= {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    before_seconds = 0.0
    if recipe in GOES_ON_FROM:
        before, before_seconds = train_model(arguments, data, GOES_ON_FROM[recipe], seed)
        settings["model_name_or_path"] = str(before)
    elif recipe in TAUGHT_BY:
        teacher, before_seconds = train_model(arguments, data, TAUGHT_BY[recipe], seed)
    elif recipe in SOFT_TEACHERS:
        trained = [train_model(arguments, data, SOFT_TEACHERS[recipe], one) for one in TEACHER_SEEDS]
        settings["soft_teachers"] = [str(folder) for folder, _ in trained]
        before_seconds = sum(seconds for _, seconds in trained)
    start, is_broken_off = time.process_time(), any(output_dir.glob("checkpoint-*"))
    if recipe in TAUGHT_BY:
        settings["train_file"] = str(pseudo_pairs(teacher, data, recipe, settings["train_file"], output_dir))
    elif recipe in FOLDS:
        # As often as independent decoders see theirs, those of a fold see their pairs.
        first = {**settings, "twin_partner": "none", "max_steps": all_updates // FOLDS[recipe]}
        first = {name: value for name, value in first.items() if name not in ("model_name_or_path", *SECOND_STAGE)}
        first = seed_settings(str(settings_file), output_dir / "first_stage", seed, **first)
        settings["train_file"] = str(write_partners(PartnerArguments(FOLDS[recipe]), *parsed(first)))
    train_seed(str(settings_file), output_dir, seed, **settings)
    seconds = seconds_of(output_dir, float("nan") if is_broken_off else time.process_time() - start)
    return output_dir, before_seconds + seconds


def pairs_folder(arguments: StudyArguments, data: str, recipe: str) -> Path:
    """Where a recipe's pairs are; those with similar pairs behind them are put there first, unless they are there."""
    given, similar = Path(arguments.data_dir) / data, Path(arguments.output_dir) / data / "similar"
    if "similar" not in recipe:
        return given
    files = [str(given / f"{name}.jsonl") for name in ("train", "validation", "test")]
    missing = [file for file in files if not (similar / Path(file).name).exists()]
    if missing:
        retrieve(RetrieveArguments(files[:1], missing, str(similar), **SIMILAR.get(data, {})))
    return similar


def pseudo_pairs(teacher: Path, data: str, recipe: str, train_file: str, folder: Path) -> Path:
    """Leaves the training pairs, and their documents with a teacher's best titles, in a student's folder."""
    best = TWINS[TEACHES_BY.get(recipe) or TEACHES_BY.get(data, "all, consensus")]
    arguments = DistillationArguments(teacher_name_or_path=str(teacher), num_beams=3, **best)
    sources = Sources(arguments, DataArguments(train_file=[train_file]))
    titles = write_pseudo_titles(arguments, sources, sources.description, folder / TITLES)
    return write_training_pairs(sources, titles, arguments.pairs, folder)


def run(arguments: StudyArguments, data: str, recipe: str, seed: int) -> dict:
    """Trains a recipe's model, or models, and writes the test set in every way."""
    number = RECIPES[recipe][2]
    # Members of an ensemble have seeds that no other model has.
    trained = [train_model(arguments, data, recipe, seed + 100 * member) for member in range(number)]
    folders, seconds = zip(*trained)
    models = [AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True).eval() for folder in folders]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    test_file = str(pairs_folder(arguments, data, recipe) / "test.jsonl")
    pairs = load_test_pairs(test_file, target_columns=REFERENCES.get(data))
    ways = {}
    for name, settings in (ways_of(models[0], recipe) if number == 1 else {"together": ALONE["l2r beam 3"]}).items():
        titles, search_seconds = write(models, tokenizer, pairs, settings)
        ways[name] = {"search_seconds": search_seconds, **scores_of(data, titles, listed_references(pairs))}
    trained_with = json.loads((folders[0] / "trained_with.json").read_text(encoding="utf-8"))
    return {
        "data": data,
        "recipe": recipe,
        "seed": seed,
        "updates": trained_with["settings"]["max_steps"],
        "seconds": sum(seconds),
        "parameters": sum(model.num_parameters() for model in models),
        "machine": machine(),
        "ways": ways,
    }


def known_mean(values: Sequence[float]) -> float:
    """The mean of those that are known; not a number if none is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.mean(known) if known else float("nan")


def seconds_of(folder: Path, measured: float) -> float:
    """What the training of a model took, of one that was trained before as it was noted then."""
    note = folder / "seconds.json"
    if not note.exists():
        note.write_text(json.dumps(measured), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def load_results(study_dir: str) -> dict[str, dict[str, dict[int, dict]]]:
    """All runs of a study that there are: by data set, recipe and seed."""
    results: dict[str, dict[str, dict[int, dict]]] = {}
    for file in sorted(Path(study_dir).glob("results/*/*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        results.setdefault(found["data"], {}).setdefault(found["recipe"], {})[found["seed"]] = found
    return results


def over_seeds(data: str, runs: dict[int, dict], way: str) -> tuple[list[float], list]:
    """A way's figure of each seed, and of each pair what its figure is made of, added up over the seeds."""
    by_seed = [runs[seed]["ways"][way] for seed in sorted(runs)]
    figures = [found[METRICS.get(data, "rougeL")] for found in by_seed]
    columns = zip(*(found["by_pair"] for found in by_seed))
    return figures, [np.mean(pair, axis=0).tolist() for pair in columns]


def ways_in(runs: dict[int, dict]) -> list[str]:
    """All ways in which models of a recipe have written."""
    return list(dict.fromkeys(way for run in runs.values() for way in run["ways"]))


def that_have(runs: dict[int, dict], way: str) -> dict[int, dict]:
    """Those of the runs whose models have written in a way: one that is new has not been in all."""
    return {seed: run for seed, run in runs.items() if way in run["ways"]}


def report(results: dict[str, dict[str, dict[int, dict]]]) -> None:
    """Prints a table for each data set."""
    for data, recipes in results.items():
        metric = METRICS.get(data, "rougeL")
        better = min if metric == "wer" else max
        print(f"\n{data}: {metric}")
        print(f"{'recipe':20}{'way':18}{'seeds':>6}{'mean':>8}{'range':>14}{'first4':>8}{'last4':>7}", end="")
        print(f"{'training s':>12}{'search s':>10}   against one direction's best beam; and its own of such a way")
        alone = recipes.get("l2r", {})
        beams = {way: over_seeds(data, that_have(alone, way), way) for way in ways_in(alone)}
        drawn, spliced = (beams.pop(f"l2r, {name}", None) for name in ("drawn", "spliced"))
        base = better(beams.values(), key=lambda found: statistics.mean(found[0])) if beams else None
        for recipe, runs in recipes.items():
            for way in ways_in(runs):
                written = that_have(runs, way)
                figures, by_pair = over_seeds(data, written, way)
                found = [run["ways"][way] for run in written.values()]
                edges = [
                    statistics.mean(x[edge] for x in found) if edge in found[0] else float("nan")
                    for edge in ("first4", "last4")
                ]
                line = f"{recipe:20}{way:18}{len(figures):6}{statistics.mean(figures):8.2f}"
                line += f"{f'{min(figures):.1f}-{max(figures):.1f}':>14}{edges[0]:8.1f}{edges[1]:7.1f}"
                line += f"{known_mean([run['seconds'] for run in written.values()]):12.0f}"
                line += f"{statistics.mean(x['search_seconds'] for x in found):10.1f}"
                statistic = bleu_of_counts if metric == "bleu" else None
                for rival in (base, drawn if "drawn" in way else spliced if "spliced" in way else None):
                    if rival is not None:
                        test = paired_bootstrap(by_pair, rival[1], statistic=statistic)
                        line += f"   {test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}] p={test.p_value:.4f}"
                print(line)


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(StudyArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    for recipe in arguments.recipes:
        if recipe not in RECIPES:
            raise ValueError(f"recipes={recipe!r} must be some of {', '.join(RECIPES)}")
    for seed in arguments.seeds if arguments.data_dir else []:
        for data in arguments.data:
            for recipe in arguments.recipes:
                file = Path(arguments.study_dir) / "results" / data / f"{recipe}-{seed}.json"
                if not file.exists():
                    found = run(arguments, data, recipe, seed)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    report(load_results(arguments.study_dir))


if __name__ == "__main__":
    main()
