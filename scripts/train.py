"""`bidir_seq2seq.commands.train` from a checkout."""

from bidir_seq2seq.commands.train import main

if __name__ == "__main__":
    main()
