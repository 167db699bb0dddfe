"""`bidir_seq2seq.commands.report` from a checkout."""

from bidir_seq2seq.commands.report import main

if __name__ == "__main__":
    main()
