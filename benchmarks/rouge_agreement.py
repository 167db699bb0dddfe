"""Compares the ROUGE of `bidir_seq2seq.metrics` with torchmetrics' own implementation, on the lead baseline.

    pip install --target .peers/torchmetrics --no-deps torchmetrics lightning-utilities
    PYTHONPATH=.peers/torchmetrics python benchmarks/rouge_agreement.py --test_file test.jsonl

torchmetrics counts n-grams and the longest common subsequence by code of its own; it is given the same tokens, which
this script cuts by itself: characters without spaces, or runs of letters and digits. Prints the means of both and
the largest difference on any pair; exits with 1 if that is above 1e-6 points.
"""

import argparse
import re
import sys

import torch
from torchmetrics.functional.text.rouge import rouge_score

from bidir_seq2seq.data import load_pairs
from bidir_seq2seq.metrics import ROUGE_TYPES, lead_baseline, pair_scores

TOKENIZERS = {"char": lambda text: list("".join(text.split())), "word": re.compile(r"[^\W_]+").findall}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test_file", required=True)
    parser.add_argument("--tokenization", choices=list(TOKENIZERS), default="char")
    args = parser.parse_args()
    pairs = load_pairs({"test": args.test_file})["test"]
    titles = list(pairs["target"])
    leads = lead_baseline(list(pairs["source"]), titles, args.tokenization)
    ours = pair_scores(leads, titles, args.tokenization)
    # It adds in float32 unless told otherwise, which alone would be about 1e-6 of a point.
    torch.set_default_dtype(torch.float64)
    settings = {"tokenizer": TOKENIZERS[args.tokenization], "normalizer": str.lower, "rouge_keys": ROUGE_TYPES}
    theirs = [rouge_score(lead, title, **settings) for lead, title in zip(leads, titles)]
    worst = 0.0
    for name in ROUGE_TYPES:
        values = [100 * float(found[f"{name}_fmeasure"]) for found in theirs]
        difference = max(abs(a - b) for a, b in zip(ours[name], values))
        means = [sum(column) / len(column) for column in (ours[name], values)]
        print(f"{name}  {means[0]:.6f}  {means[1]:.6f}  largest difference of a pair {difference:.1e}")
        worst = max(worst, difference)
    sys.exit(worst > 1e-6)


if __name__ == "__main__":
    main()
