"""The console script `bidir-seq2seq`: one name for all commands, each imported only when it is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What a user types: the module whose `main` it runs, and a line for the list of commands.
COMMANDS = {
    "train": ("train", "train a title model from pairs of texts"),
    "distil": ("distil", "train a student on titles that a teacher writes"),
    "partners": ("partners", "write what twin decoders are to read of each other in a second stage of training"),
    "retrieve": ("retrieve", "put the most similar training pairs behind documents, to be read with them"),
    "generate": ("generate", "write titles for texts with a trained model"),
    "check": ("check_data", "show what files of pairs hold, before training on them"),
    "score": ("score", "score a model's directions, or lines that something else wrote, on held-out pairs"),
    "tune": ("tune", "learn from held-out pairs how the candidates of a model are ranked best"),
    "diagnose": ("diagnose", "show what the two decoders of a model do for each other, and whether answers leak"),
    "report": ("report", "write a page about one run or several: curves, scores, examples, attention"),
    "push": ("push_to_hub", "upload a trained model, or show what would go up, to the Hugging Face Hub"),
}

# In the environment: errors come with their traceback.
TRACEBACK = "BIDIR_SEQ2SEQ_TRACEBACK"


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names with the arguments after it.

    Args:
        argv: Instead of the process's own arguments.
    """
    parser = argparse.ArgumentParser(
        prog="bidir-seq2seq",
        description="Small, fast sequence-to-sequence models that write titles from both ends.",
        epilog="'bidir-seq2seq COMMAND --help' explains a command. An error is told in a line; with "
        f"{TRACEBACK}=1 in the environment also where it happened.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, help_line) in COMMANDS.items():
        commands.add_parser(name, help=help_line, add_help=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    # Only the first argument is ours: the command's own parser, which takes long to import, reads the others.
    name = parser.parse_args(argv[:1]).command
    # Its usage and error messages open with this.
    sys.argv[0] = f"{parser.prog} {name}"
    run(name, argv[1:])


def run(name: str, argv: list[str] | None = None) -> None:
    """Runs one command.

    Args:
        name: One of `COMMANDS`.
        argv: Instead of the process's own arguments.
    """
    with errors_in_a_line():
        importlib.import_module(f"{__package__}.{COMMANDS[name][0]}").main(argv)


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """Around what a user has started: what is wrong with their input is said without a traceback.

    Raises:
        SystemExit: 1 after a `ValueError`, `OSError` or missing package, 130 after Ctrl-C; other errors are ours, and
            keep their traceback.
    """
    try:
        yield
    except BrokenPipeError as error:
        # Who reads our output has seen enough, as in `... | head`; Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK):
            raise
        raise SystemExit(f"{os.path.basename(sys.argv[0])}: error: {error}") from None
    except KeyboardInterrupt:
        if os.environ.get(TRACEBACK):
            raise
        raise SystemExit(130) from None


__all__ = ["COMMANDS", "errors_in_a_line", "main", "run"]
