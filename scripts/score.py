"""`bidir_seq2seq.commands.score` from a checkout."""

from bidir_seq2seq.commands.score import main

if __name__ == "__main__":
    main()
