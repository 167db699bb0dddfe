"""`python -m bidir_seq2seq`: the same as the console script `bidir-seq2seq`."""

from .commands.cli import main

if __name__ == "__main__":
    main()
