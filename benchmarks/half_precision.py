"""What bfloat16 changes in quality: models trained and searched in it beside the same ones in float32.

    make quickstart
    python benchmarks/half_precision.py

For each seed two models learn from the same batches, one as it is and one with the Trainer's `bf16`, which keeps
weights in float32. Then titles of the test pairs are written in float32 and by a model loaded in bfloat16. Printed are
the validation loss after the last update, each training in its own precision, and ROUGE-L, each with the difference to
float32 throughout and its standard error over the seeds; for ROUGE-L also a paired bootstrap over the pairs, of whose
scores the mean over the seeds is taken.

A CPU without products of bfloat16 computes them as one that has them: of rounded factors, added up in float32 and
rounded. That takes longer than float32, so nothing is said about speed; `--dtypes float32 bfloat16` of
`decode.py` and `train.py` measures that. A run that was stopped goes on when the same command is given again.
"""

import contextlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from comparison import machine
from seeds import train_seed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bidir_seq2seq.arguments import parse_arguments
from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.evaluation import predict
from bidir_seq2seq.metrics import pair_scores, paired_bootstrap

DTYPES = ("float32", "bfloat16")
# Trained in, written in; what the others are compared with comes first.
WAYS = (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
SYSTEMS = ("l2r", "joint")
aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.mm.out,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.mkldnn_rnn_layer.default,
    aten.mkldnn_rnn_layer_backward.default,
}


@dataclass
class HalfPrecisionArguments:
    settings: str = field(
        default="scripts/quickstart.yaml", metadata={"help": "Settings of the training, as for scripts/train.py."}
    )
    test_file: str = field(default="quickstart/data/test.jsonl", metadata={"help": "Pairs with the references."})
    output_dir: str = field(default="output/half_precision", metadata={"help": "Folder for models and results."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, of each two models."})
    max_steps: int = field(default=1000, metadata={"help": "Updates."})
    max_samples: int | None = field(default=None, metadata={"help": "Use only the first so many test pairs."})
    num_beams: int = field(default=3, metadata={"help": "Beams per direction."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})


class RoundedProducts(TorchDispatchMode):
    """Products of bfloat16 matrices as processors with such products compute them: added up in float32, rounded once.

    A CPU without them takes 20 times as long by itself, and has no LSTM layers in bfloat16: those run in float32 from
    what goes in to what comes out.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Computes one operation."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        out = kwargs.pop("out", None)
        func = aten.mm.default if func is aten.mm.out else func
        wide = func(*tree_map_only(torch.Tensor, _widened, args), **kwargs)
        result = tree_map_only(torch.Tensor, lambda x: x.bfloat16() if x.dtype == torch.float32 else x, wide)
        return result if out is None else out.copy_(result)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def bfloat16_everywhere() -> contextlib.AbstractContextManager:
    """Lets bfloat16 run on a processor that has no products of it, too."""
    has_products = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return contextlib.nullcontext() if has_products else RoundedProducts()


def run(arguments: HalfPrecisionArguments, pairs, seed: int, dtype: str) -> dict:
    """Trains one model, and writes titles with it in each precision that it is compared in."""
    folder = Path(arguments.output_dir) / f"seed-{seed}-{dtype}"
    changes = {"max_steps": arguments.max_steps, "bf16": dtype == "bfloat16"}
    with bfloat16_everywhere() if dtype == "bfloat16" else contextlib.nullcontext():
        metrics = train_seed(arguments.settings, folder, seed, **changes)
    titles = {}
    for trained_in, written_in in WAYS:
        if trained_in != dtype:
            continue
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=written_in, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with bfloat16_everywhere() if written_in == "bfloat16" else contextlib.nullcontext():
            titles[written_in] = predict(model, tokenizer, pairs, SYSTEMS, num_beams=arguments.num_beams)
    return {"eval_loss": metrics["eval_loss"], "titles": titles}


def report(runs: dict[tuple[int, str], dict], seeds: list[int], references: list[str]) -> list[dict]:
    """Prints the losses and the ROUGE of all runs, by seed and precision of training, and returns their figures."""
    rows, first = [], None
    heading = "".join(f"{f'seed {seed}':>9}" for seed in seeds) + f"{'mean':>9}{'difference':>19}"
    print(f"\n{'validation loss':32}{heading}")
    for dtype in DTYPES:
        losses = [runs[seed, dtype]["eval_loss"] for seed in seeds]
        rows.append({"trained_in": dtype, "eval_loss": losses})
        print(format_row(f"trained in {dtype}", losses, first, digits=4))
        first = first or losses
    print(f"\n{'ROUGE-L, trained and written in':32}{heading}  over the pairs")
    for system in SYSTEMS:
        first = None
        for trained_in, written_in in WAYS:
            titles = [runs[seed, trained_in]["titles"][written_in][system] for seed in seeds]
            scores = [pair_scores(texts, references)["rougeL"] for texts in titles]
            by_seed, by_pair = [[statistics.mean(x) for x in table] for table in (scores, zip(*scores))]
            row = {"system": system, "trained_in": trained_in, "written_in": written_in, "rougeL": by_seed}
            line = format_row(f"{system:7}{trained_in}, {written_in}", by_seed, first and first[0], digits=2)
            if first is None:
                first = by_seed, by_pair, titles
            else:
                test = paired_bootstrap(by_pair, first[1])
                changed = statistics.mean(a != b for texts in zip(titles, first[2]) for a, b in zip(*texts))
                row |= {**asdict(test), "changed": changed}
                line += f"  [{test.low:+.2f}, {test.high:+.2f}] p={test.p_value:.4f}, {changed:.0%} of titles changed"
            rows.append(row)
            print(line)
    return rows


def format_row(label: str, by_seed: list[float], first: list[float] | None, digits: int) -> str:
    """Figures of each seed, their mean and, where there are others `first`, the difference and its standard error."""
    line = f"{label:32}" + "".join(f"{x:9.{digits}f}" for x in [*by_seed, statistics.mean(by_seed)])
    if first is None:
        return line
    differences = [a - b for a, b in zip(by_seed, first)]
    difference = f"{statistics.mean(differences):+.{digits}f}"
    if len(differences) > 1:
        # The error of a training's seed, of which the bootstrap over the pairs knows nothing.
        difference += f" ± {statistics.stdev(differences) / len(differences) ** 0.5:.{digits}f}"
    return f"{line}{difference:>19}"


def main(args: list[str] | None = None) -> None:
    (arguments,) = parse_arguments(HalfPrecisionArguments, description=__doc__, args=args)
    torch.set_num_threads(arguments.threads)
    pairs = load_pairs({"test": arguments.test_file})["test"]
    pairs = pairs.select(range(min(arguments.max_samples or len(pairs), len(pairs))))
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    # What runs that are compared have in common.
    names = ("settings", "test_file", "max_steps", "max_samples", "num_beams")
    settings = {name: getattr(arguments, name) for name in names}
    runs = {}
    for seed in arguments.seeds:
        for dtype in DTYPES:
            file = output_dir / f"seed-{seed}-{dtype}.json"
            if not file.exists():
                result = {"arguments": settings, **run(arguments, pairs, seed, dtype)}
                file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            runs[seed, dtype] = json.loads(file.read_text(encoding="utf-8"))
            if runs[seed, dtype]["arguments"] != settings:
                raise ValueError(
                    f"{file} has other settings, {runs[seed, dtype]['arguments']}: choose another output_dir"
                )
    rows = report(runs, arguments.seeds, [text or "" for text in pairs["target"]])
    results = {"machine": machine(), "arguments": asdict(arguments), "results": rows}
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
