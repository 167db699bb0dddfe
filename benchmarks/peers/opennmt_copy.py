"""OpenNMT-py's LSTM with copy attention, trained for so many processor seconds, and what it then writes.

    python peers/opennmt_copy.py JOB.json

The job holds `train` and `test` (files of JSON lines, each a list of two texts of tokens with spaces between),
`vocab` (tokens), `hidden_size`, `num_layers`, `batch_size`, `options` (of `onmt_train`), `ways` (options of
`onmt_translate` by name), `budget` (processor seconds), `max_length`, `seed`, `threads` and `falling_share`: in the
last seconds of the training, that share of them, the learning rate falls to 0 as half a cosine. Then it writes about
all test sources, whose time does not count. The last line of the output is JSON: the `seconds`, the `updates`, for
each way the `titles` and `search_seconds`, and the `parameters` and `version`.

Its own command line cannot search a model that copies, so that its `Translator` is given the model as it was trained,
one document at a time: in a batch it goes on with the words of the wrong document once a title is finished.
"""

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onmt
import torch
from onmt import opts
from onmt.constants import ModelTask
from onmt.inputters.inputter import build_vocab
from onmt.inputters.text_utils import _addcopykeys, numericalize, tensorify
from onmt.model_builder import build_model
from onmt.trainer import build_trainer
from onmt.translate import GNMTGlobalScorer, Translator
from onmt.utils.optimizers import Optimizer
from onmt.utils.parse import ArgumentParser
from opennmt_lstm import parse


def build(job: dict):
    """The options as `onmt_train` would make them, the vocabularies and a new model."""
    size = job["hidden_size"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file = Path(folder) / "vocab.txt"
        vocab_file.write_text("".join(f"{token}\n" for token in job["vocab"]), encoding="utf-8")
        fixed = {"encoder_type": "brnn", "decoder_type": "rnn", "rnn_type": "LSTM", "max_grad_norm": 1}
        sizes = {"word_vec_size": size, "hidden_size": size, "layers": job["num_layers"]}
        files = {"data": "{}", "src_vocab": vocab_file, "save_model": "unused"}
        options = parse(opts.train_opts, **files, **fixed, **sizes, **job["options"])
        options.data, options.data_task = {}, ModelTask.SEQ2SEQ
        options.share_vocab = options.share_embeddings = True
        options.copy_attn = options.reuse_copy_attn = True
        ArgumentParser.update_model_opts(options)
        ArgumentParser.validate_model_opts(options)
        vocabs = build_vocab(options, {"src": [], "tgt": []})
    return options, vocabs, build_model(options, options, vocabs, None, device_id=-1)


def to_batch(vocabs: dict, pairs: list[tuple[str, str | None]]) -> dict:
    """Pairs of texts as its own reader makes a batch of them, with what copies need."""
    examples = []
    for index, (source, target) in enumerate(pairs):
        tgt = None if target is None else {"tgt": target}
        example = {"src": {"src": source}, "tgt": tgt, "cid": "text", "cid_line_number": index, "align": None}
        examples.append((_addcopykeys(vocabs, numericalize(vocabs, example)), index))
    return tensorify(vocabs, examples, "cpu")


def batches_of(vocabs: dict, pairs: list, batch_size: int, seed: int, stop: float) -> Iterator[tuple[dict, int]]:
    """Batches of similar length in random order, epoch after epoch, until the process has had so many seconds."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(range(len(pairs)), len(pairs))
        pool = 50 * batch_size
        order = [
            index
            for first in range(0, len(order), pool)
            for index in sorted(order[first : first + pool], key=lambda i: len(pairs[i][0]))
        ]
        batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
        draw.shuffle(batches)
        for batch in batches:
            if time.process_time() >= stop:
                return
            yield to_batch(vocabs, [pairs[index] for index in batch]), 0


def falling(stop: float, seconds: float) -> Callable[[int], float]:
    """What the learning rate is multiplied by, update after update: 1, and then half a cosine that ends at `stop`."""

    def share(update: int) -> float:
        progress = min(max(1 - (stop - time.process_time()) / seconds, 0), 1)
        return (1 + math.cos(math.pi * progress)) / 2

    return share


def write(model, vocabs: dict, train_options, job: dict, way: dict, sources: list[str]) -> list[str]:
    """A title of each source, as tokens with spaces between."""
    options = parse(opts.translate_opts, model="unused", src="unused", max_length=job["max_length"], **way)
    # Otherwise it cuts titles at a share of their source's length.
    options.max_length_ratio = 0
    scorer = GNMTGlobalScorer.from_opt(options)
    translator = Translator.from_opt(model.eval(), vocabs, options, train_options, global_scorer=scorer)
    titles, words = [], vocabs["tgt"].ids_to_tokens
    for source in sources:
        batch = to_batch(vocabs, [(source, None)])
        with torch.no_grad():
            best = translator.translate_batch(batch, attn_debug=False)["predictions"][0][0].tolist()
        own = batch["src_ex_vocab"][0].ids_to_tokens
        tokens = [words[i] if i < len(words) else own[i - len(words)] for i in best]
        titles.append(" ".join(token for token in tokens if token != "</s>"))
    return titles


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    texts = {
        name: [json.loads(line) for line in Path(job[name]).read_text(encoding="utf-8").splitlines()]
        for name in ("train", "test")
    }
    options, vocabs, model = build(job)
    trainer = build_trainer(options, -1, model, vocabs, Optimizer.from_opt(model, options))
    model.train()
    start = time.process_time()
    stop = start + job["budget"]
    if job["falling_share"]:
        # It has no such schedule of its own; this is where all of its schedules go.
        trainer.optim._learning_rate_decay_fn = falling(stop, job["falling_share"] * job["budget"])
    first = trainer.optim.training_step
    trainer.train(batches_of(vocabs, texts["train"], job["batch_size"], job["seed"], stop), train_steps=0)
    result = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "version": onmt.__version__,
        "seconds": time.process_time() - start,
        "updates": trainer.optim.training_step - first,
        "ways": {},
    }
    for name, way in job["ways"].items():
        start = time.process_time()
        titles = write(model, vocabs, options, job, way, [source for source, _ in texts["test"]])
        result["ways"][name] = {"titles": titles, "search_seconds": time.process_time() - start}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
