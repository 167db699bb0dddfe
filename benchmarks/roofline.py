"""How far a training step and a search step are from what they cannot do without.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --output roofline.json

The machine's rates are measured in the same run, in turn with all else: of large float32 products, by `torch.mm` and
with a weight laid out for oneDNN (`FixedLinear`); of exponentials, by `torch.softmax` of rows in the cache; and of
copying. The floor of a part is the longer of two times: that of its products at the faster of their rates and of its
exponentials, which the same units compute, and that of its bytes at the rate of copying. Two columns more have other
floors: "no exp" that of products and bytes alone, "torch.mm" the same at the rate of `torch.mm`, which is what plain
torch code can come near.

Exponentials are one for each number of a softmax and five for each unit of an LSTM step (three sigmoids, two tanh).
Bytes are those of tensors that one operation must hand to the next, and of weights, once each; the logits of a block
never have to leave the cache and count as none. Times are of one thread, processor seconds, medians. Batches have no
padding. Freed memory is kept (`keep_freed_memory`), as in `train`, unless --hand_back_memory is given.

A step is measured whole. Its parts are measured alone, on the shipped modules, with their own backward passes;
"bookkeeping" is what is left of the whole: reading ids, joining parts, beams, clipping and updating weights. Alone a
part finds less in the cache than within its step, so what is left may be nothing.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration
from bidir_seq2seq.allocator import keep_freed_memory
from bidir_seq2seq.kernels_bidir_seq2seq import FixedLinear
from bidir_seq2seq.output_bidir_seq2seq import Written

FLOAT_BYTES = 4
PRODUCT_SIZE = 1024
# Half a megabyte, and how often it is read at a time.
SOFTMAX_SHAPE, NUM_SOFTMAXES = (64, 2048), 20
COPY_FLOATS = 2**24


@dataclass
class Size:
    """A model's sizes and those of its batches: S source tokens, T target tokens."""

    config: BidirSeq2SeqConfig
    source_length: int
    target_length: int


SIZES = {
    "H 256, V 8,000": Size(
        BidirSeq2SeqConfig(
            vocab_size=8000, embedding_size=256, hidden_size=256, num_attention_heads=8, attention_head_size=32
        ),
        source_length=40,
        target_length=16,
    ),
    "the reference's sizes": Size(BidirSeq2SeqConfig(vocab_size=2400), source_length=200, target_length=20),
}


@dataclass
class Work:
    """What must be done: floating-point operations of products, bytes to be read or written, and exponentials."""

    flops: float = 0.0
    moved: float = 0.0
    exps: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.moved + other.moved, self.exps + other.exps)

    def times(self, factor: float) -> "Work":
        return Work(self.flops * factor, self.moved * factor, self.exps * factor)

    def with_backward(self) -> "Work":
        """Also of the backward pass: two forward passes, with the exponentials at hand."""
        return Work(self.flops * 3, self.moved * 3, self.exps)


def linear(rows: int, inputs: int, outputs: int) -> Work:
    """Rows `[rows, inputs]` times a weight `[inputs, outputs]`."""
    return Work(2 * rows * inputs * outputs, FLOAT_BYTES * (inputs * outputs + rows * (inputs + outputs)))


def recurrence(rows: int, inputs: int, hidden: int) -> Work:
    """An LSTM layer over `rows` tokens in all: input and recurrent products of four gates."""
    return Work(
        2 * rows * 4 * hidden * (inputs + hidden),
        FLOAT_BYTES * (4 * hidden * (inputs + hidden) + rows * (inputs + hidden)),
        5 * rows * hidden,
    )


def attention(config: BidirSeq2SeqConfig, pairs: float, memory_rows: int) -> Work:
    """Scores and context of `pairs` (query, memory position) pairs that read `memory_rows` keys and values."""
    size = config.num_attention_heads * config.attention_head_size
    return Work(2 * 2 * pairs * size, FLOAT_BYTES * 2 * memory_rows * size, pairs * config.num_attention_heads)


def training_work(size: Size, batch_size: int) -> dict[str, Work]:
    """The parts of one update of a twin model."""
    c, rows = size.config, batch_size * size.target_length
    source_rows, directions = batch_size * size.source_length, 2
    heads = c.num_attention_heads * c.attention_head_size
    encoder = decoder = Work()
    for layer in range(c.encoder_layers):
        inputs = c.embedding_size if layer == 0 else c.hidden_size
        encoder = encoder + recurrence(source_rows, inputs, c.hidden_size // 2).times(2)
    for layer in range(c.decoder_layers):
        inputs = c.embedding_size if layer == 0 else c.hidden_size
        decoder = decoder + recurrence(rows, inputs, c.hidden_size).times(directions)
    reading = (
        linear(source_rows, c.hidden_size, 2 * heads)
        + linear(rows, c.hidden_size, 2 * heads)
        + attention(c, rows * size.source_length, source_rows)
    )
    features = c.hidden_size + 2 * heads
    twin = linear(rows, c.hidden_size, 2 * heads)
    # Position t reads positions up to t: half of all pairs.
    twin = twin + attention(c, rows * size.target_length / 2, rows)
    output = linear(rows, features, c.embedding_size)
    vocabulary = Work(
        2 * rows * c.embedding_size * c.vocab_size,
        FLOAT_BYTES * (c.vocab_size + rows) * c.embedding_size,
        rows * c.vocab_size,
    )
    num_weights = sum(p.numel() for p in BidirSeq2SeqForConditionalGeneration(c).parameters())
    # AdamW reads weight, gradient and both moments and writes back all but the gradient; clipping reads it once more.
    bookkeeping = Work(0, FLOAT_BYTES * 8 * num_weights)
    return {
        "encoder": encoder.with_backward(),
        "decoders": decoder.with_backward(),
        "attention": (reading + twin).with_backward().times(directions),
        "projection and loss": (output + vocabulary).with_backward().times(directions),
        "bookkeeping": bookkeeping,
    }


def search_work(size: Size, batch_size: int, num_beams: int, directions: int, written: int) -> dict[str, Work]:
    """The parts of one search step with `written` tokens behind it."""
    c, rows = size.config, batch_size * num_beams
    heads = c.num_attention_heads * c.attention_head_size
    decoder = Work()
    for layer in range(c.decoder_layers):
        inputs = c.embedding_size if layer == 0 else c.hidden_size
        decoder = decoder + recurrence(rows, inputs, c.hidden_size)
    reading = linear(rows, c.hidden_size, heads)
    reading = reading + attention(c, rows * size.source_length, batch_size * size.source_length)
    scored = rows
    if directions == 2:
        scored = rows * num_beams
        reading = reading + linear(rows, c.hidden_size, 3 * heads) + attention(c, scored * written, rows * written)
    # Of a pair's features only the part of the twin context is the pair's own.
    features = linear(rows, c.hidden_size + heads, c.embedding_size)
    if directions == 2:
        features = features + linear(scored, heads, c.embedding_size)
    vocabulary = Work(
        2 * scored * c.embedding_size * c.vocab_size,
        FLOAT_BYTES * (c.vocab_size / directions + scored) * c.embedding_size,
        scored * c.vocab_size,
    )
    # Beams change places: states, and what the twins have shown each other.
    moved = rows * c.hidden_size * 2 * c.decoder_layers + (directions - 1) * rows * written * 2 * heads
    return {
        "decoders": decoder.times(directions),
        "attention": reading.times(directions),
        "projection and scores": (features + vocabulary).times(directions),
        "bookkeeping": Work(0, FLOAT_BYTES * 2 * moved * directions),
    }


def machine_jobs() -> dict[str, Callable[[], None]]:
    left, right = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE), torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    fixed = FixedLinear(right)
    rows = torch.randn(SOFTMAX_SHAPE)
    source, target = torch.randn(COPY_FLOATS), torch.empty(COPY_FLOATS)
    return {
        "torch.mm": lambda: torch.mm(left, right),
        "fixed layer": lambda: fixed(left),
        "softmax": lambda: [torch.softmax(rows, -1) for _ in range(NUM_SOFTMAXES)],
        "copying": lambda: target.copy_(source),
    }


def training_jobs(size: Size, batch_size: int) -> dict[str, Callable[[], None]]:
    """The whole step and its parts, each with its backward pass."""
    c = size.config
    model = BidirSeq2SeqForConditionalGeneration(c).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    source = torch.randint(4, c.vocab_size, (batch_size, size.source_length))
    labels = torch.randint(4, c.vocab_size, (batch_size, size.target_length))
    labels[:, -1] = c.eos_token_id
    r2l_labels = model.directions[1].targets(labels)
    with torch.no_grad():
        encoded = model.model.encoder(source)
        memories = [decoder.read_source(encoded) for decoder in (model.model.decoder, model.model.r2l_decoder)]
        embeds = model.model.encoder.embed_tokens(labels)
        hidden = [
            decoder.recur(embeds, memory)[-1]
            for decoder, memory in zip((model.model.decoder, model.model.r2l_decoder), memories)
        ]
    encoder_grads = torch.randn_like(encoded.last_hidden_state), torch.randn_like(encoded.pooler_output)
    grads = [torch.randn_like(h) for h in hidden]
    mask = torch.ones(size.target_length, size.target_length, dtype=torch.bool).tril()

    def whole():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=source, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def encoder():
        out = model.model.encoder(source)
        torch.autograd.backward((out.last_hidden_state, out.pooler_output), encoder_grads)

    def decoders():
        for decoder, memory, grad in zip((model.model.decoder, model.model.r2l_decoder), memories, grads):
            decoder.recur(embeds.requires_grad_(), memory)[-1].backward(grad)

    def attend():
        states = encoded.last_hidden_state.requires_grad_()
        own = [h.requires_grad_() for h in hidden]
        document = type(encoded)(
            last_hidden_state=states, pooler_output=encoded.pooler_output, source_mask=encoded.source_mask
        )
        contexts = []
        decoders = model.model.decoder, model.model.r2l_decoder
        for decoder, h in zip(decoders, own):
            contexts.append(decoder.attend_source(h, decoder.read_source(document))[0])
        for decoder, h, offer in zip(decoders, own, reversed(own)):
            contexts.append(decoder.twin_attention(h, *decoder.twin_attention.memory(offer), mask)[0])
        torch.autograd.backward([x.sum() for x in contexts])

    def project():
        heads = c.num_attention_heads * c.attention_head_size
        context = hidden[0].new_zeros(*hidden[0].shape[:2], 2 * heads)
        written = [
            Written(decoder.features(torch.cat([h.requires_grad_(), context], dim=-1)))
            for decoder, h in zip((model.model.decoder, model.model.r2l_decoder), hidden)
        ]
        model.words(encoded).loss(written, [labels, r2l_labels]).backward()

    return {
        "whole": whole,
        "encoder": encoder,
        "decoders": decoders,
        "attention": attend,
        "projection and loss": project,
    }


def search_jobs(size: Size, batch_size: int, num_beams: int, directions: int, written: int) -> dict[str, Callable]:
    """Searches of two lengths, whose difference are steps with `written` tokens behind them, and a step's parts."""
    c = size.config
    model = BidirSeq2SeqForConditionalGeneration(c).eval()
    source = torch.randint(4, c.vocab_size, (batch_size, size.source_length))
    encoded = model.model.encoder(source)
    direction = "both" if directions == 2 else "l2r"
    ids = torch.randint(4, c.vocab_size, (directions, batch_size, num_beams))
    steps = model.model.start_steps(encoded, direction)
    for _ in range(written):
        steps.step(ids)
    embeds = model.model.encoder.embed_tokens(ids).flatten(1, 2)
    hidden = steps.recur(embeds)
    contexts = steps.attend(hidden, num_beams)[:2]
    next_tokens = model.words(encoded).next_tokens()
    scores = torch.zeros(batch_size, directions, num_beams)
    partners = None
    if directions == 2:
        partners = torch.full((batch_size, 2 * num_beams, num_beams), 1 / num_beams)
    forbidden = [torch.arange(3)] * directions

    def search(length: int):
        limits = {"min_new_tokens": length, "max_new_tokens": length}
        model.generate(source, num_beams=num_beams, decoding_direction=direction, **limits)

    def attend():
        # Each time as many tokens are behind the step.
        for memory in steps.twin_memories:
            memory.length = min(memory.length, written)
        steps.attend(hidden, num_beams)

    def project():
        features = steps.features(hidden, *contexts).view(*ids.shape, *[num_beams] * (directions - 1), -1)
        next_tokens.best(features.transpose(0, 1).flatten(1, 2), scores, 2 * num_beams, forbidden, partners)

    return {
        "short": lambda: search(written // 2),
        "long": lambda: search(written + written // 2),
        "decoders": lambda: steps.recur(embeds),
        "attention": attend,
        "projection and scores": project,
    }


def measure(jobs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each job over `repeats` rounds, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_index in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if round_index:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def analyse(title: str, work: dict[str, Work], jobs: dict[str, Callable], repeats: int, written: int) -> dict:
    """Measures one kind of step, prints its table, and returns its figures."""
    seconds = measure({**jobs, **machine_jobs()}, repeats)
    product_rates = {name: 2 * PRODUCT_SIZE**3 / seconds[name] for name in ("torch.mm", "fixed layer")}
    exp_rate = NUM_SOFTMAXES * math.prod(SOFTMAX_SHAPE) / seconds["softmax"]
    copy_rate = 2 * FLOAT_BYTES * COPY_FLOATS / seconds["copying"]
    whole = seconds.get("whole")
    if whole is None:
        whole = (seconds["long"] - seconds["short"]) / written
    measured = {name: seconds[name] for name in work if name in seconds}
    measured["bookkeeping"] = whole - sum(measured.values())
    measured["whole"] = whole

    def floors_at(product_rate: float, exp_rate: float) -> dict[str, float]:
        floors = {
            name: max(part.flops / product_rate + part.exps / exp_rate, part.moved / copy_rate)
            for name, part in work.items()
        }
        return {**floors, "whole": sum(floors.values())}

    best_rate = max(product_rates.values())
    floors = {
        "ratio": floors_at(best_rate, exp_rate),
        "no exp": floors_at(best_rate, math.inf),
        "torch.mm": floors_at(product_rates["torch.mm"], math.inf),
    }
    rates = ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in product_rates.items())
    print(f"\n{title}: {rates}, softmax {exp_rate / 1e9:.2f} G exp/s, copying {copy_rate / 1e9:.1f} GB/s")
    columns = "".join(f"{name:>10}" for name in floors)
    print(f"{'part':24}{'GFLOP':>8}{'M exp':>8}{'MB':>8}{'floor, ms':>11}{'measured':>10}{columns}")
    parts = {}
    for name, part in [*work.items(), ("whole", sum(work.values(), Work()))]:
        ratios = {column: measured[name] / of_parts[name] for column, of_parts in floors.items()}
        floor = floors["ratio"][name]
        parts[name] = {**vars(part), "floor": floor, "seconds": measured[name], "ratios": ratios}
        row = f"{name:24}{part.flops / 1e9:8.2f}{part.exps / 1e6:8.2f}{part.moved / 1e6:8.1f}{floor * 1e3:11.2f}"
        print(f"{row}{measured[name] * 1e3:10.2f}" + "".join(f"{ratio:10.2f}" for ratio in ratios.values()))
    of_machine = {"product_rates": product_rates, "exp_rate": exp_rate, "copy_rate": copy_rate}
    return {"title": title, **of_machine, "parts": parts}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=64, help="documents (default 64)")
    parser.add_argument("--written", type=int, default=32, help="tokens behind a search step (default 32)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median is taken (default 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--hand_back_memory", action="store_true", help="leave the memory allocator as it is by itself"
    )
    parser.add_argument("--output", help="JSON file to write the figures to")
    options = parser.parse_args(args)

    torch.set_num_threads(options.threads)
    if not options.hand_back_memory:
        keep_freed_memory()
    set_seed(0)
    results = []
    for name, size in SIZES.items():
        batch_size, written = options.batch_size, options.written
        title = f"{name}, batch {batch_size}"
        jobs = training_jobs(size, batch_size)
        results.append(
            analyse(f"Training step, {title}", training_work(size, batch_size), jobs, options.repeats, written)
        )
        for beams, directions, label in ((5, 1, "one direction, K = 5"), (3, 2, "both directions, K = 3")):
            with torch.inference_mode():
                jobs = search_jobs(size, batch_size, beams, directions, written)
                work = search_work(size, batch_size, beams, directions, written)
                results.append(analyse(f"Search step, {label}, {title}", work, jobs, options.repeats, written))
    if options.output:
        machine = {"processor": platform.processor(), "machine": platform.machine(), "torch": torch.__version__}
        report = {"machine": machine, "settings": vars(options), "steps": results}
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
