"""One system in a process of its own, told what to do by JSON lines on its standard input.

The first line holds the settings. The answer to it says how large the system is; each further line, whatever it
says, asks for one run over all batches, and the answer to that holds its seconds. The process ends with its input.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import torch

# A batch as every system gets it: pairs of source ids and target ids, without any special token of a library.
Batch = list[tuple[list[int], list[int]]]
# A system ready to run: its parameters, and a call that runs once over all batches and counts the target tokens.
Ready = tuple[Iterable[torch.nn.Parameter], Callable[[], int]]


def serve(prepare: dict[str, Callable[[dict, list[Batch]], Ready]], *libraries: ModuleType) -> None:
    """Answers the lines of standard input until it ends.

    Args:
        prepare: For each task, `"decode"` and `"train"`, what builds the system from settings and batches. Special
            ids are 0 padding, 1 unknown, 2 start, 3 end; batches hold none of them but the unknown one.
        libraries: Modules whose versions are reported.
    """
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    parameters, run = prepare[settings["task"]](settings, settings["batches"])
    run()
    answer = {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "versions": {module.__name__: module.__version__ for module in (torch, *libraries)},
    }
    print(json.dumps(answer), file=answers)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall_seconds": wall, "cpu_seconds": cpu, "tokens": tokens, "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers)


def peak_bytes() -> int:
    """The most memory that this process has held. `getrusage` would count what its parent held when it started it."""
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


def words(ids: list[int]) -> list[str]:
    """Ids as the tokens of a text, for libraries that number tokens by themselves; they do not know that of id 1."""
    return [str(i) for i in ids]


def vocabulary(vocab_size: int) -> list[str]:
    """All tokens that `words` makes of `vocab_size` ids, without the four special ones."""
    return words(range(4, vocab_size))
