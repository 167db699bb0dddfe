"""Titles written by several processes, each with a model of its own, in the order of the documents."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch
from transformers import set_seed
from transformers.utils import logging

from ..allocator import keep_freed_memory
from ..loading import load_model_and_tokenizer
from ..titles import Title, window_size, windows, write_titles

# What a worker process has loaded.
_loaded: dict = {}


def write_in_processes(
    num_processes: int,
    model_name_or_path: str,
    documents: Iterable[str],
    dtype: str = "auto",
    device: str | None = None,
    batch_size: int = 32,
    seed: int | None = None,
    start: int = 0,
    trust_remote_code: bool = False,
    **generate_kwargs,
) -> Iterator[list[Title]]:
    """As [`stream_titles`], with windows shared out among processes; at most two a process are under way.

    Args:
        num_processes: How many. With several GPUs each takes the next.
        model_name_or_path: What each process loads.
        documents, batch_size, seed, start, generate_kwargs: As for [`stream_titles`].
        dtype, device, trust_remote_code: As for [`load_model_and_tokenizer`].

    Yields:
        The titles of each document, in the given order, best first.

    Raises:
        ValueError: If the model cannot be loaded, or as `generate` does.
        RuntimeError: If a process was ended from outside.
    """
    context = get_context("spawn")
    first = start // window_size(batch_size)
    pool = ProcessPoolExecutor(
        num_processes,
        mp_context=context,
        initializer=_load,
        initargs=(model_name_or_path, dtype, device, trust_remote_code, num_processes, context.Value("i", 0)),
    )
    under_way: deque[Future] = deque()
    try:
        for number, window in enumerate(windows(documents, batch_size), start=first):
            own_seed = None if seed is None else seed + number
            under_way.append(pool.submit(_write, window, number > first, own_seed, batch_size, generate_kwargs))
            if len(under_way) >= 2 * num_processes:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process was ended from outside, perhaps for want of memory: go on with --resume and fewer of them"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _load(
    model_name_or_path: str, dtype: str, device: str | None, trust_remote_code: bool, num_processes: int, counter
) -> None:
    with counter.get_lock():
        index, counter.value = counter.value, counter.value + 1
    if device is None and torch.cuda.is_available():
        device = f"cuda:{index % torch.cuda.device_count()}"
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    keep_freed_memory()
    try:
        _loaded["model"], _loaded["tokenizer"] = load_model_and_tokenizer(
            model_name_or_path, dtype, device, trust_remote_code
        )
    except (ValueError, OSError) as error:
        # Raised here it would reach nobody.
        _loaded["error"] = error


def _write(
    window: list[str], quiet: bool, seed: int | None, batch_size: int, generate_kwargs: dict
) -> list[list[Title]]:
    if "error" in _loaded:
        raise _loaded["error"]
    if quiet:
        # The first window's account is warning enough.
        logging.set_verbosity_error()
    if seed is not None:
        set_seed(seed)
    return write_titles(_loaded["model"], _loaded["tokenizer"], window, batch_size=batch_size, **generate_kwargs)


__all__ = ["write_in_processes"]
