"""Turns weights of the published Keras programs into a checkpoint that transformers loads.

    python scripts/convert_reference_checkpoint.py best_model.weights.h5 converted --characters seq2seq_config.json
    python scripts/convert_reference_checkpoint.py twin.npz converted

Then `AutoModelForSeq2SeqLM.from_pretrained("converted")`, after `import bidir_seq2seq`.
"""

import argparse

from bidir_seq2seq.commands.cli import errors_in_a_line
from bidir_seq2seq.keras_checkpoints import convert_reference_checkpoint


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help=".npz with keys 'w:<Keras name>', or .h5 as Keras 2's save_weights writes it")
    parser.add_argument("output_dir", help="folder for the checkpoint")
    parser.add_argument("--characters", help="JSON with char2id; default: the .json file beside the weights")
    parser.add_argument("--num_attention_heads", type=int, default=8, help="heads per attention layer (default 8)")
    options = parser.parse_args(args)
    convert_reference_checkpoint(options.weights, options.output_dir, options.characters, options.num_attention_heads)
    print(f"Wrote {options.output_dir}")


if __name__ == "__main__":
    with errors_in_a_line():
        main()
