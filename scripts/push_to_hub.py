"""`bidir_seq2seq.commands.push_to_hub` from a checkout."""

from bidir_seq2seq.commands.push_to_hub import main

if __name__ == "__main__":
    main()
