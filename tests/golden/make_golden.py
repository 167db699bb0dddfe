"""Makes the small golden files beside it: the reference model's formulas in plain numpy, with random weights.

    python tests/golden/make_golden.py

Nothing here comes from the package, so that the two can disagree. Documents are computed one at a time and without
padding. Letters: S source length, T target length, V vocabulary, E embedding size, H hidden size.
"""

import json
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))
from reference_search import reference_search, run_searches  # noqa: E402

CHARACTERS = "天地人和 abc"
V, E, H, HEADS, HEAD_SIZE = 4 + len(CHARACTERS), 5, 8, 2, 2
MAX_STEPS = 10
TOP_KS = (1, 2, 3)


class Weights(dict):
    """Arrays by Keras name, drawn when they are first asked for."""

    def __init__(self, seed: int):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def draw(self, name: str, *shape: int, scale: float = 1.0) -> np.ndarray:
        if name not in self:
            # Steps of 1/64 keep the files small.
            self[name] = (np.round(self.random.normal(size=shape) * scale * 64) / 64).astype(np.float32)
        return self[name].astype(np.float64)

    def dense(self, x, layer, size, index=0, bias=True, scale=1.0):
        suffix = f"_{index}" if index else ""
        y = x @ self.draw(f"{layer}/kernel{suffix}:0", x.shape[-1], size, scale=scale)
        return y + self.draw(f"{layer}/bias{suffix}:0", size, scale=0.5) if bias else y

    def lstm(self, x, layer, size):
        """`[T, D]` to `[T, size]`; Keras orders the gates input, forget, cell, output."""
        kernel = self.draw(f"{layer}/kernel:0", x.shape[-1], 4 * size)
        recurrent = self.draw(f"{layer}/recurrent_kernel:0", size, 4 * size)
        bias = self.draw(f"{layer}/bias:0", 4 * size)
        h, c, outputs = np.zeros(size), np.zeros(size), []
        for row in x:
            i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        return np.array(outputs)

    def modulated_norm(self, x, document, number):
        layer = f"self_modulated_layer_normalization_{number}" if number else "self_modulated_layer_normalization"
        beta = self.dense(np.maximum(self.dense(document, layer, H // 4, 0), 0), layer, x.shape[-1], 1)
        gamma = self.dense(np.maximum(self.dense(document, layer, H // 4, 2), 0), layer, x.shape[-1], 3)
        return normalise(x) * (gamma + 1) + beta

    def attention(self, queries, memory, number, causal=False):
        layer = f"attention_{number}" if number else "attention"
        q, k, v = (
            self.dense(x, layer, HEADS * HEAD_SIZE, index, bias=False)
            for index, x in enumerate((queries, memory, memory))
        )
        outputs = []
        for head in range(HEADS):
            part = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
            scores = q[:, part] @ k[:, part].T / np.sqrt(HEAD_SIZE)
            if causal:
                scores = scores - 1e10 * np.triu(np.ones_like(scores), 1)
            outputs.append(softmax(scores) @ v[:, part])
        return np.concatenate(outputs, axis=-1)

    def embed(self, ids):
        return self.draw("embedding/embeddings:0", V, E, scale=2.0)[ids]

    def encode(self, source):
        """Source ids to hidden states `[S, H]`, document vector `[H]` and prior `[V]`."""
        x = self.embed(source)
        for number in ("", "_1"):
            layer = f"layer_normalization{number}"
            gamma = self.draw(f"{layer}/gamma:0", x.shape[-1])
            x = normalise(x) * gamma + self.draw(f"{layer}/beta:0", x.shape[-1])
            layer = f"our_bidirectional{number}"
            from_left = self.lstm(x, f"{layer}/lstm_cell", H // 2)
            from_right = self.lstm(x[::-1], f"{layer}/lstm_cell_2", H // 2)[::-1]
            x = np.concatenate([from_left, from_right], axis=-1)
        occurs = np.isin(np.arange(V), source)
        scale = np.exp(self.draw("scale_shift/log_scale:0", 1, 1, V)[0, 0])
        return x, x.max(0), scale * occurs + self.draw("scale_shift/shift:0", 1, 1, V)[0, 0]

    def recur(self, ids, document, direction):
        x = self.embed(ids)
        for layer in range(2):
            x = self.modulated_norm(x, document, 3 * direction + layer)
            x = self.lstm(x, f"lstm_{2 + 2 * direction + layer}/lstm_cell", H)
        return self.modulated_norm(x, document, 3 * direction + 2)

    def output(self, concatenated, prior, feature_layer, classifier):
        features = self.dense(concatenated, feature_layer, E)
        features = np.where(features > 0, features, 0.2 * features)
        # Large weights here make the distributions sharp enough for titles to end.
        return softmax((self.dense(features, classifier, V, scale=3.0) + prior) / 2)

    def uni(self, source, ids):
        """Probabilities `[T, V]` after each of the target's ids."""
        states, document, prior = self.encode(source)
        h = self.recur(ids, document, 0)
        return [self.output(np.concatenate([h, self.attention(h, states, 0)], -1), prior, "dense_15", "dense_16")]

    def twin(self, source, l2r_ids, r2l_ids):
        """Probabilities `[T, V]` of left-to-right, and of right-to-left."""
        states, document, prior = self.encode(source)
        left, right = self.recur(l2r_ids, document, 0), self.recur(r2l_ids, document, 1)
        left_parts = [left, self.attention(left, right, 0, causal=True), self.attention(left, states, 1)]
        left_concatenated = np.concatenate(left_parts, -1)
        # The program's quirk: right-to-left reads its twin's concatenated features, not its states.
        right_twin = self.attention(right, left_concatenated, 2, causal=True)
        right_concatenated = np.concatenate([right, right_twin, self.attention(right, states, 3)], -1)
        return [
            self.output(left_concatenated, prior, "dense_37", "dense_36"),
            self.output(right_concatenated, prior, "dense_38", "dense_36"),
        ]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def normalise(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-14)


def pad(rows, dtype):
    padded = np.zeros((len(rows), max(map(len, rows)), *np.shape(rows[0])[1:]), dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded


def search(weights, source, twin, topk):
    def next_probs(requests):
        (prefixes, _), *_ = requests
        if not twin:
            return [np.array([[weights.uni(source, ids)[0][-1] for ids in prefixes[0]]], np.float32)]
        pairs = [[weights.twin(source, left, right) for right in prefixes[1]] for left in prefixes[0]]
        return [np.array([[[pair[side][-1] for pair in row] for row in pairs]], np.float32) for side in (0, 1)]

    return run_searches([reference_search(2 if twin else 1, topk, MAX_STEPS)], next_probs)[0]


def make(name: str, seed: int) -> None:
    """Writes `NAME.npz` and `NAME.json`, in the form of the reference programs' own golden files."""
    twin = name == "twin"
    char2id = {character: index for index, character in enumerate(CHARACTERS, start=4)}
    random = np.random.default_rng(seed)
    # The last character is in no table.
    documents = ["".join(random.choice(list(CHARACTERS + "?"), size)) for size in (9, 1, 14, 5, 7, 11, 3, 12)]
    titles = ["".join(random.choice(list(CHARACTERS + "?"), size)) for size in (4, 1, 6, 3, 5, 2, 3, 4)]
    sources = [[char2id.get(character, 1) for character in text] for text in documents]
    targets = [[2, *(char2id.get(character, 1) for character in text), 3] for text in titles]

    weights = Weights(seed)
    arrays = {"x": pad(sources, np.int64)}
    sides = {"l": targets, "r": [ids[::-1] for ids in targets]} if twin else {"": targets}
    run = weights.twin if twin else weights.uni
    probs = [run(source, *ids) for source, *ids in zip(sources, *sides.values())]
    for number, (side, inputs) in enumerate(sides.items()):
        own = [row[number] for row in probs]
        arrays[f"y{side}"] = pad(inputs, np.int64)
        arrays[f"p{side}"] = pad(own[:4], np.float32)
        of_targets = [p[np.arange(len(ids) - 1), ids[1:]] for p, ids in zip(own, inputs)]
        arrays[f"tgt_{side}" if side else "tgt"] = pad(of_targets, np.float32)
    beams = [
        {"doc": doc, "topk": topk, "ids": search(weights, source, twin, topk).ids}
        for topk in TOP_KS
        for doc, source in enumerate(sources)
    ]
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays, **{f"w:{key}": array for key, array in weights.items()})
    facts = {
        "num_attention_heads": HEADS,
        "maxlen": MAX_STEPS,
        "char2id": char2id,
        "documents": documents,
        "titles": titles,
        "beams": beams,
    }
    text = json.dumps(facts, ensure_ascii=False, indent=None).replace('{"doc"', '\n{"doc"')
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    make("twin", seed=6)
    make("uni", seed=6)
