"""OpenNMT-py's LSTM: its Translator, its Trainer."""

import tempfile
from pathlib import Path

import onmt
from onmt import opts
from onmt.constants import ModelTask
from onmt.inputters.inputter import build_vocab
from onmt.inputters.text_utils import textbatch_to_tensor
from onmt.model_builder import build_model
from onmt.trainer import build_trainer
from onmt.translate import GNMTGlobalScorer, Translator
from onmt.utils.optimizers import Optimizer
from onmt.utils.parse import ArgumentParser
from worker import Batch, Ready, serve, vocabulary, words


def parse(add_options, **flags):
    """Options as its command line would make them."""
    parser = ArgumentParser()
    add_options(parser)
    return parser.parse_args([text for name, value in flags.items() for text in (f"--{name}", str(value))])


def build(settings: dict):
    size = settings["hidden_size"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = Path(folder) / "vocab.txt"
        vocab_file.write_text("".join(f"{token}\n" for token in vocabulary(settings["vocab_size"])))
        options = parse(
            opts.train_opts,
            data="{}",
            src_vocab=vocab_file,
            save_model="unused",
            encoder_type="brnn",
            decoder_type="rnn",
            rnn_type="LSTM",
            word_vec_size=size,
            hidden_size=size,
            layers=settings["num_layers"],
            global_attention="mlp",
            dropout=0,
            optim="adam",
            learning_rate=1e-3,
            max_grad_norm=1,
        )
        options.data, options.data_task = {}, ModelTask.SEQ2SEQ
        options.share_vocab = options.share_embeddings = True
        ArgumentParser.update_model_opts(options)
        ArgumentParser.validate_model_opts(options)
        vocabs = build_vocab(options, {"src": [], "tgt": []})
    return options, vocabs, build_model(options, options, vocabs, None, device_id=-1)


def to_tensors(vocabs: dict, batch: Batch, with_target: bool) -> dict:
    examples = [
        {
            "src": {"src": " ".join(words(source))},
            "tgt": {"tgt": " ".join(words(target))} if with_target else None,
        }
        for source, target in batch
    ]
    return textbatch_to_tensor(vocabs, examples, "cpu")[0]


def prepare_decode(settings: dict, batches: list[Batch]) -> Ready:
    model_options, vocabs, model = build(settings)
    options = parse(
        opts.translate_opts,
        model="unused",
        src="unused",
        beam_size=settings["generate"]["num_beams"],
        min_length=settings["length"],
        max_length=settings["length"],
        # Otherwise it silently cuts the lengths asked for.
        max_length_ratio=0,
    )
    translator = Translator.from_opt(
        model.eval(), vocabs, options, model_options, global_scorer=GNMTGlobalScorer.from_opt(options)
    )
    tensors = [to_tensors(vocabs, batch, with_target=False)[0] for batch in batches]

    def run() -> int:
        results = [translator.translate_batch(batch, attn_debug=False) for batch in tensors]
        return sum(len(best[0]) for result in results for best in result["predictions"])

    return model.parameters(), run


def prepare_train(settings: dict, batches: list[Batch]) -> Ready:
    options, vocabs, model = build(settings)
    trainer = build_trainer(options, -1, model, vocabs, Optimizer.from_opt(model, options))
    tensors = [to_tensors(vocabs, batch, with_target=True) for batch in batches]

    def run() -> int:
        return trainer.train(tensors, train_steps=0).n_words

    return model.parameters(), run


if __name__ == "__main__":
    serve({"decode": prepare_decode, "train": prepare_train}, onmt)
