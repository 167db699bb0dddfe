"""`bidir_seq2seq.commands.retrieve` from a checkout."""

from bidir_seq2seq.commands.cli import run

if __name__ == "__main__":
    run("retrieve")
