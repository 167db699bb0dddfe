"""fairseq's LSTM with all embeddings shared: its SequenceGenerator, its Trainer."""

import fairseq
import torch
from fairseq import options
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer
from worker import Batch, Ready, serve, vocabulary, words


def build(settings: dict):
    """Its configuration, task and model, as its command line would make them."""
    size, layers = str(settings["hidden_size"]), str(settings["num_layers"])
    flags = {
        "--arch": "lstm",
        "--task": "translation",
        "--encoder-embed-dim": size,
        "--encoder-hidden-size": str(settings["hidden_size"] // 2),
        "--encoder-layers": layers,
        "--decoder-embed-dim": size,
        "--decoder-hidden-size": size,
        "--decoder-out-embed-dim": size,
        "--decoder-layers": layers,
        "--dropout": "0",
        "--criterion": "cross_entropy",
        "--optimizer": "adam",
        "--lr": "1e-3",
        "--clip-norm": "1",
        "--batch-size": str(settings["batch_size"]),
        "--save-dir": settings["scratch_dir"],
    }
    switches = ["--encoder-bidirectional", "--share-all-embeddings", "--cpu"]
    command_line = ["unused", *switches, *(text for flag in flags.items() for text in flag)]
    parsed = options.parse_args_and_arch(options.get_training_parser(), input_args=command_line)
    config = convert_namespace_to_omegaconf(parsed)
    dictionary = Dictionary()
    for token in vocabulary(settings["vocab_size"]):
        dictionary.add_symbol(token)
    task = TranslationTask(config.task, dictionary, dictionary)
    return config, task, task.build_model(config.model)


def to_samples(task: TranslationTask, batch: Batch) -> dict:
    def encode(ids: list[int]) -> torch.Tensor:
        return task.src_dict.encode_line(" ".join(words(ids)), add_if_not_exist=False).long()

    sources, targets = [encode(source) for source, _ in batch], [encode(target) for _, target in batch]
    dataset = LanguagePairDataset(
        sources,
        [len(source) for source in sources],
        task.src_dict,
        targets,
        [len(target) for target in targets],
        task.tgt_dict,
        shuffle=False,
    )
    return dataset.collater([dataset[i] for i in range(len(dataset))])


def prepare_decode(settings: dict, batches: list[Batch]) -> Ready:
    config, task, model = build(settings)
    model.eval()
    model.prepare_for_inference_(config)
    generation = config.generation
    generation.beam = settings["generate"]["num_beams"]
    # Its limits do not count the end, which takes a step of the decoder too.
    generation.min_len = generation.max_len_b = settings["length"] - 1
    generation.max_len_a = 0
    generator = task.build_generator([model], generation)
    samples = [to_samples(task, batch) for batch in batches]

    def run() -> int:
        outputs = [task.inference_step(generator, [model], sample) for sample in samples]
        return sum(len(hypotheses[0]["tokens"]) for output in outputs for hypotheses in output)

    return model.parameters(), run


def prepare_train(settings: dict, batches: list[Batch]) -> Ready:
    config, task, model = build(settings)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    # Builds the schedule, without which there is no learning rate.
    trainer.lr_step_begin_epoch(1)
    samples = [to_samples(task, batch) for batch in batches]

    def run() -> int:
        for sample in samples:
            trainer.train_step([sample])
        return sum(sample["ntokens"] for sample in samples)

    return model.parameters(), run


if __name__ == "__main__":
    serve({"decode": prepare_decode, "train": prepare_train}, fairseq)
