import os
import shutil

# Read when the libraries below are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration

# The ways in which twins write.
WAYS = {
    "greedy": {"decoding_direction": "l2r", "num_beams": 1},
    "l2r": {"decoding_direction": "l2r"},
    "r2l": {"decoding_direction": "r2l"},
    "both": {"decoding_direction": "both", "joint_rescoring": False},
    "joint": {"decoding_direction": "both", "joint_rescoring": True},
}


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """Tiny products run faster on one thread, and every test starts from the same random state."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tiny_config(**overrides) -> BidirSeq2SeqConfig:
    sizes = {"vocab_size": 24, "embedding_size": 10, "hidden_size": 12}
    settings = {**sizes, "num_attention_heads": 2, "attention_head_size": 4}
    return BidirSeq2SeqConfig(**{**settings, **overrides})


def tiny_model(spread: float = 0.6, **overrides) -> BidirSeq2SeqForConditionalGeneration:
    """A model whose random weights are large enough for distributions that are far from uniform."""
    model = BidirSeq2SeqForConditionalGeneration(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, spread)
    return model


def random_pairs(batch_size: int = 4, source_length: int = 9, target_length: int = 6, vocab_size: int = 24):
    """Source ids `[B, S]` padded with 0, and labels `[B, T]` ending in 3, padded with -100; rows differ in length."""
    input_ids = torch.randint(4, vocab_size, (batch_size, source_length))
    labels = torch.randint(4, vocab_size, (batch_size, target_length))
    for row in range(batch_size):
        input_ids[row, source_length - row :] = 0
        labels[row, target_length - 1 - row % (target_length - 1)] = 3
        labels[row, target_length - row % (target_length - 1) :] = -100
    return input_ids, labels


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, or the one of `playwright install chromium`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        found = (shutil.which("chromium"), shutil.which("google-chrome"), started.chromium.executable_path)
        path = next((path for path in found if path and os.path.exists(path)), None)
        if path is None:
            pytest.skip("no Chromium here: apt-get install chromium, or playwright install chromium")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def sideways(page) -> int:
    """By how many pixels a page, or a frame in one, is wider than what shows it."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
