"""What a model of some size costs, counted: parameters, and the products of one pair in training or writing.

    python benchmarks/sizes.py
    python benchmarks/sizes.py --sizes 256 --vocabularies 8000 64000 --source_length 400

A matrix of n numbers costs n multiplications a token that goes through it; the backward pass costs twice the forward.
An embedding is looked up and costs none. Lengths are in tokens. Nothing is measured here.
"""

import argparse

import torch

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration


def products(config: BidirSeq2SeqConfig, source_length: int, target_length: int) -> tuple[int, dict[str, int]]:
    """A model's parameters, and the multiplications of one pair's forward pass by part of the model."""
    with torch.device("meta"):
        model = BidirSeq2SeqForConditionalGeneration(config)
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    matrices = {name: sizes[name] for name, tensor in model.named_parameters() if tensor.dim() == 2}
    matrices = {name: size for name, size in matrices.items() if "embed_tokens" not in name}
    # Keys and values are made of the document, once for every decoder.
    of_source = [
        n for n in matrices if ".encoder." in n or "source_attention.key" in n or "source_attention.value" in n
    ]
    of_target = [name for name in matrices if "decoder." in name and name not in of_source and ".norms." not in name]
    directions = 2 if config.decoder_directions == "both" else 1
    # Scores and weighted sums of attention, over the document's tokens.
    attention = 2 * source_length * config.num_attention_heads * config.attention_head_size * directions
    parts = {
        "document": source_length * sum(matrices[name] for name in of_source),
        "decoders": target_length * (sum(matrices[name] for name in of_target) + attention),
        "output layer": target_length * directions * config.vocab_size * config.embedding_size,
    }
    return sum(sizes.values()), parts


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256, 512, 1024], help="Hidden and embedding size."
    )
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8000, 32000, 128000])
    parser.add_argument("--source_length", type=int, default=200)
    parser.add_argument("--target_length", type=int, default=20)
    parser.add_argument("--decoder_directions", default="both", choices=["both", "l2r", "r2l"])
    args = parser.parse_args()
    print("| size | vocabulary | parameters, M | products a pair, M | document | decoders | output layer |")
    print("|---|---|---|---|---|---|---|")
    for size in args.sizes:
        for vocabulary in args.vocabularies:
            config = BidirSeq2SeqConfig(
                vocab_size=vocabulary,
                embedding_size=size,
                hidden_size=size,
                decoder_directions=args.decoder_directions,
            )
            parameters, parts = products(config, args.source_length, args.target_length)
            total = sum(parts.values())
            shares = " | ".join(f"{part / total:.0%}" for part in parts.values())
            print(f"| {size} | {vocabulary:,} | {parameters / 1e6:.1f} | {total / 1e6:,.0f} | {shares} |")


if __name__ == "__main__":
    main()
