"""One model used from many threads, and from processes forked after it was loaded: the titles it writes alone."""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from conftest import tiny_model

from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

LETTERS = "abcdefghijklmnopqrst"
# Every way to search; each asks for other things of what a model may keep.
WAYS = [
    {"num_beams": 1},
    {"num_beams": 3, "decoding_direction": "l2r"},
    {"num_beams": 3, "decoding_direction": "both", "joint_rescoring": True},
    {"num_beams": 2, "decoding_direction": "r2l", "vocabulary_shortlist": 4},
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=len(LETTERS) + 4)


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer([LETTERS], min_frequency=1)


@pytest.fixture(scope="module")
def jobs():
    """Documents and settings of 40 calls."""
    choose = random.Random(0)
    documents = ["".join(choose.choices(LETTERS, k=choose.randint(1, 25))) for _ in range(200)]
    return [(documents[i * 5 : i * 5 + 5], WAYS[i % len(WAYS)]) for i in range(40)]


# What forked workers find in their memory.
SHARED = {}


def titles(job):
    documents, settings = job
    return write_titles(SHARED["model"], SHARED["tokenizer"], documents, batch_size=3, max_new_tokens=8, **settings)


@pytest.fixture(scope="module")
def alone(model, tokenizer, jobs):
    SHARED.update(model=model, tokenizer=tokenizer)
    return [titles(job) for job in jobs]


@pytest.mark.e2e
def test_twenty_threads_write_what_one_writes(alone, jobs):
    assert len({str(found) for found in alone}) > 30
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(titles, jobs)) == alone


def test_four_forked_workers_write_what_one_writes(alone, jobs):
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(titles, jobs, timeout=60)) == alone
