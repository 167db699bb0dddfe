"""`bidir_seq2seq.commands.diagnose` from a checkout."""

from bidir_seq2seq.commands.diagnose import main

if __name__ == "__main__":
    main()
