"""`bidir_seq2seq.commands.check_data` from a checkout."""

from bidir_seq2seq.commands.check_data import main

if __name__ == "__main__":
    main()
