"""Freed memory that stays with the process."""

import os
import platform
import subprocess
import sys

import pytest

from bidir_seq2seq.allocator import keep_freed_memory

# How many pages the system has to map while a program makes the same large tensors again and again.
PROGRAM = """
import resource, torch
from bidir_seq2seq.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()

def step():
    return [torch.zeros(2_000_000) for _ in range(5)]

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_mapped(keep):
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(run.stdout)


@pytest.mark.e2e
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_is_kept(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    # 20 steps of 40 MB are 195,000 pages of 4 KB. One process in four keeps them without being told.
    assert any(pages_mapped(keep=False) > 50_000 for _ in range(10))
    assert pages_mapped(keep=True) < 15_000


def test_what_the_environment_has_set_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert keep_freed_memory() is False
