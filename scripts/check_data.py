"""`bidir_seq2seq.commands.check_data` from a checkout."""

from bidir_seq2seq.commands.cli import run

if __name__ == "__main__":
    run("check")
