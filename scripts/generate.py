"""`bidir_seq2seq.commands.generate` from a checkout."""

from bidir_seq2seq.commands.generate import main

if __name__ == "__main__":
    main()
