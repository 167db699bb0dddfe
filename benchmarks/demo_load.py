"""Measures the demo as visitors meet it: latency of a short text, and many visitors at once.

    python -m bidir_seq2seq.demo quickstart/model --port 7860
    python benchmarks/demo_load.py --url http://127.0.0.1:7860 --output output/demo_load.json

First one visitor asks again and again, each time with another text of the given length; then `--visitors` ask at the
same moment, each of whom waits in the queue. Times are of the whole answer, animation included, by Gradio's own
client. Exits with 1 if an answer is an error or has no title.
"""

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gradio_client import Client

WORDS = ("return", "the", "value", "of", "a", "file", "read", "write", "list", "table", "name", "path", "error", "key")


def make_text(seed: int, characters: int) -> str:
    """A text of so many characters, another one for each seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(characters))[:characters]


def ask(client: Client, text: str) -> float:
    """Seconds until the titles are there."""
    start = time.perf_counter()
    titles, _ = client.predict(text, "English", api_name="/write")
    if "bidir-title" not in str(titles):
        raise RuntimeError(f"no title in {str(titles)[:200]!r}")
    return time.perf_counter() - start


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p95 = (1000 * np.quantile(seconds, share) for share in (0.5, 0.95))
    return {"p50": round(p50, 1), "p95": round(p95, 1), "max": round(1000 * max(seconds), 1), "requests": len(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--characters", type=int, default=100)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--output")
    args = parser.parse_args()
    client = Client(args.url, verbose=False)
    for seed in range(3):
        ask(client, make_text(-seed - 1, args.characters))
    alone = [ask(client, make_text(seed, args.characters)) for seed in range(args.requests)]
    visitors = [Client(args.url, verbose=False) for _ in range(args.visitors)]
    errors, together = [], []
    with ThreadPoolExecutor(args.visitors) as pool:
        waiting = [
            pool.submit(ask, visitor, make_text(10_000 + seed, args.characters))
            for seed, visitor in enumerate(visitors)
        ]
        for asked in waiting:
            try:
                together.append(asked.result())
            except Exception as error:
                errors.append(repr(error))
    result = {"one visitor": summary(alone), f"{args.visitors} at once": summary(together or [0]), "errors": errors}
    print(json.dumps(result, indent=2))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
