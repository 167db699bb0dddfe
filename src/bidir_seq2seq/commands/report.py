"""Writes a page about one run, or several side by side, and its pictures.

    bidir-seq2seq report my_model
    bidir-seq2seq report my_model other_model --scores_dirs my_scores other_scores --output_dir comparison

It shows what `train` and `score` left behind: learning curves; scores with intervals, accuracy from both ends,
lengths and examples, if there are scores (score --output_dir my_model/scores); and, by the trained model itself, where
it looks and what its prior does. The page is one file that needs no network.
"""

import argparse
from pathlib import Path

from ..report import write_report


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="Output folder of a training.")
    parser.add_argument(
        "--scores_dirs",
        nargs="+",
        metavar="DIR",
        help="What score wrote, a folder for each run. Default: scores in or beside the run's folder.",
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="What to call the runs. Default: their folders.")
    parser.add_argument("--output_dir", help="Where to. Default: report in the first run's folder.")
    parser.add_argument(
        "--no_model", action="store_true", help="Load no model: without attention and the prior's effect."
    )
    args = parser.parse_args(argv)
    page = write_report(args.run_dirs, args.output_dir, args.scores_dirs, args.names, look=not args.no_model)
    print(f"Report: {page.resolve()}")
    if (Path(args.run_dirs[0]) / "config.json").exists():
        print(f"Try the model in a browser: python -m bidir_seq2seq.demo {args.run_dirs[0]}")
