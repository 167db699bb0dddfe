"""Does a training that was killed, or ran out of disk, end as one that was left alone?

    python benchmarks/kill.py --output kill.json

A tiny model is trained once without interruption. Then, in a new folder each time, it is trained again and

* killed (SIGKILL) at an update, or at an operation on the files of its folder, most of them inside a save,
* run in a folder that is too small, at a byte somewhere in a save (Linux, as root, who may mount such a folder),
* as two processes by torchrun, of which one is killed,

and the same training is started again until it ends. Weights, optimizer, schedule and log of the last checkpoint, and
the finished model, must be equal bit by bit; in the log only times may differ. The exit code is 0 if all were.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from safetensors.torch import load_file

from bidir_seq2seq.run_folder import checkpoint_damage, numbered_checkpoints
from bidir_seq2seq.trainer import TitleTrainer
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments, train

ROOT = Path(__file__).parents[1]
TIMES = re.compile("elapsed_seconds|runtime|per_second")
UPDATES, SAVE_STEPS = 60, 5
MODEL = {"embedding_size": 16, "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8}
# 25 updates an epoch: some saves are at its end and most in its middle, where half of an update's batches are left.
TRAINING = {
    "max_steps": UPDATES,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": SAVE_STEPS,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "logging_steps": 3,
    "predict_with_generate": False,
    "warmup_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_pairs(folder: Path) -> dict[str, str]:
    """Pairs of random letters and their first three; what they say does not matter here."""
    generator = random.Random(0)
    for name, count in (("train", 200), ("validation", 8)):
        texts = ("".join(generator.choices("abcdefgh", k=generator.randint(3, 20))) for _ in range(count))
        lines = (json.dumps({"document": text, "title": text[:3]}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {f"{name}_file": str(folder / f"{name}.jsonl") for name in ("train", "validation")}


def run(pairs: dict[str, str], folder: Path, settings: dict, update: int = 0, operation: int = 0) -> None:
    """Trains, and kills its own process at an update or at an operation on files, each counted from 1."""
    torch.set_num_threads(1)
    count_operations(folder, operation)
    count_updates(update)
    with open(f"{folder}.log", "a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            train(
                ModelArguments(**MODEL, min_frequency=1),
                DataArguments(**pairs),
                TrainingArguments(output_dir=str(folder), **settings),
            )
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=log)
            raise SystemExit(1) from None


def count_operations(folder: Path, last: int) -> None:
    """Counts what Python does to files of the folder, and kills the process at the last one."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        paths = [path for path in arguments[:2] if isinstance(path, str | os.PathLike)]
        if not event.startswith(("open", "os.", "shutil.")) or not any(str(folder) in str(path) for path in paths):
            return
        seen += 1
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def count_updates(last: int) -> None:
    """Kills the process in the second half of an update."""
    seen, step = 0, TitleTrainer.training_step

    def training_step(*args, **kwargs):
        nonlocal seen
        seen += 1
        if seen == 2 * last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)

    TitleTrainer.training_step = training_step


def in_process(*args, **kwargs) -> int:
    """Runs a training in a process of its own, and returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args, kwargs=kwargs)
    process.start()
    process.join()
    return process.exitcode


def main():
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="Kills of one process, half of them inside a save.")
    parser.add_argument("--full_disks", type=int, default=20)
    parser.add_argument("--two_processes", type=int, default=5, help="Kills of one of two processes.")
    parser.add_argument("--output", type=Path, help="JSON of all runs.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill_") as name:
        folder = Path(name)
        pairs = write_pairs(folder)
        assert in_process(pairs, folder / "whole", TRAINING) == 0, (folder / "whole.log").read_text()
        results = kills(pairs, folder, args.kills) + full_disks(pairs, folder, args.full_disks)
        results += two_processes(pairs, folder, args.two_processes)
    for kind in dict.fromkeys(result["kind"] for result in results):
        of_kind = [result for result in results if result["kind"] == kind]
        equal = sum(result["difference"] is None for result in of_kind)
        print(f"{kind:24} {equal} of {len(of_kind)} equal to the run left alone")
    if args.output:
        args.output.write_text(json.dumps({"torch": torch.__version__, "runs": results}, indent=2) + "\n")
    raise SystemExit(any(result["difference"] for result in results))


def kills(pairs: dict[str, str], folder: Path, number: int) -> list[dict]:
    """Kills at updates, and at operations on files, spread over the whole run."""
    operations = number_of_operations(pairs, folder / "counted")
    points = [("update", 1 + i * (UPDATES - 1) // max(number // 2 - 1, 1)) for i in range(number // 2)]
    rest = number - len(points)
    # The first ones belong to the start, before there is anything to lose.
    points += [("operation", 10 + i * (operations - 10) // max(rest - 1, 1)) for i in range(rest)]
    results = []
    for kind, point in points:
        run_folder = folder / f"{kind}{point}"
        code = in_process(pairs, run_folder, TRAINING, **{kind: point})
        results.append(gone_on(f"killed at {kind}", point, code, pairs, folder / "whole", run_folder, TRAINING))
    return results


def number_of_operations(pairs: dict[str, str], folder: Path) -> int:
    """How many operations on files a whole run makes, found by bisection with kills."""
    low, high = 1, 1 << 14
    while high - low > 20:
        middle = (low + high) // 2
        code = in_process(pairs, folder, TRAINING, operation=middle)
        low, high = (middle, high) if code == -signal.SIGKILL else (low, middle)
        shutil.rmtree(folder)
    return low


def full_disks(pairs: dict[str, str], folder: Path, number: int) -> list[dict]:
    """Folders of more and more bytes, all too few; then the same ones with enough."""
    settings = {**TRAINING, "save_total_limit": UPDATES}
    assert in_process(pairs, folder / "all", settings) == 0
    size = sum(path.stat().st_size for path in (folder / "all").rglob("*"))
    results = []
    for i in range(number):
        run_folder = folder / f"small{i}"
        run_folder.mkdir()
        too_small = size * (i + 1) // (number + 2)
        mount = ["mount", "-t", "tmpfs", "-o"]
        if subprocess.run([*mount, f"size={too_small}", "tmpfs", str(run_folder)]).returncode:
            print("no folder of a given size can be mounted here: the disks that are full are left out")
            return results
        try:
            code = in_process(pairs, run_folder, settings)
            said = Path(f"{run_folder}.log").read_text()
            subprocess.run([*mount[:1], "-o", "remount,size=1g", str(run_folder)], check=True)
            result = gone_on("full disk", too_small, code, pairs, folder / "all", run_folder, settings)
            results.append({**result, "said": said.splitlines()[-1]})
        finally:
            subprocess.run(["umount", str(run_folder)], check=True)
    return results


def two_processes(pairs: dict[str, str], folder: Path, number: int) -> list[dict]:
    """Kills of the first or the second of two processes that torchrun has started."""
    settings = {**TRAINING, "per_device_train_batch_size": 2}
    results = []
    if number:
        assert torchrun(pairs, folder / "whole2", settings) == 0, (folder / "whole2.log").read_text()[-2000:]
    for i in range(number):
        run_folder = folder / f"two{i}"
        point = 3 + i * (UPDATES - 6) // max(number - 1, 1)
        code = torchrun(pairs, run_folder, settings, rank=i % 2, update=point)
        result = gone_on(f"killed, process {i % 2} of 2", point, code, pairs, folder / "whole2", run_folder, settings)
        results.append(result)
    return results


def torchrun(pairs: dict[str, str], folder: Path, settings: dict, rank: int = 0, update: int = 0) -> int:
    """Trains with two processes; `rank` is the one that is killed at `update`."""
    call = json.dumps([pairs, str(folder), settings, rank, update])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    with open(f"{folder}.log", "a") as log:
        return subprocess.run(
            [*command, __file__, "--process", call], stdout=log, stderr=log, env=environment
        ).returncode


def one_of_two(call: str) -> None:
    """What each of the two processes does."""
    pairs, folder, settings, rank, update = json.loads(call)
    run(pairs, Path(folder), settings, update=update if int(os.environ["RANK"]) == rank else 0)


def gone_on(kind: str, point: int, code: int, pairs, whole: Path, folder: Path, settings: dict) -> dict:
    """Starts a run again, and compares it with the one that was left alone."""
    left = numbered_checkpoints(folder)
    damaged = [path.name for path in left if checkpoint_damage(path)]
    again = torchrun if "of 2" in kind else in_process
    second = again(pairs, folder, settings)
    difference = "it did not end" if second else first_difference(whole, folder)
    result = {
        "kind": kind,
        "point": point,
        "exit_code": code,
        "went_on_from": left[0].name if left else None,
        "damaged_checkpoints": damaged,
        "difference": f"damaged: {damaged}" if damaged else difference,
    }
    print(result, flush=True)
    return result


def first_difference(whole: Path, folder: Path) -> str | None:
    """What differs between two finished runs, if anything does."""
    for name in ("model.safetensors", f"checkpoint-{UPDATES}/model.safetensors"):
        one, two = load_file(whole / name), load_file(folder / name)
        if not equal(one, two):
            return name
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(path / f"checkpoint-{UPDATES}" / name, weights_only=True) for path in (whole, folder)]
        if not equal(*states):
            return name
    logs = [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in (whole, folder)]
    logs = [[without_times(entry) for entry in log if "train_runtime" not in entry] for log in logs]
    return None if logs[0] == logs[1] else "the log"


def without_times(entry: dict) -> dict:
    """An entry of a log without what the clock said."""
    return {name: value for name, value in entry.items() if not TIMES.search(name)}


def equal(one, two) -> bool:
    """Whether two states are the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


if __name__ == "__main__":
    if sys.argv[1:2] == ["--process"]:
        one_of_two(sys.argv[2])
    else:
        main()
