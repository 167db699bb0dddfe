"""`bidir_seq2seq.commands.push_to_hub` from a checkout."""

from bidir_seq2seq.commands.cli import run

if __name__ == "__main__":
    run("push")
