import json

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from bidir_seq2seq.data import encode_pairs
from bidir_seq2seq.metrics import TitleScore
from bidir_seq2seq.pipeline import BidirSeq2SeqPipeline
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer
from bidir_seq2seq.training import DataArguments, ModelArguments, TrainingArguments, title_metrics, train
from bidir_seq2seq.unknown_words import TitleCollator, decode, decode_to_compare, extend_ids

BUILDERS = {
    "char": (build_char_tokenizer, "今天发布新规", "龘发布麤龘", "龘麤", ["龘", "麤"]),
    "word": (
        build_word_tokenizer,
        "the cat runs",
        "the Aachen cat Bonn Aachen",
        "Bonn Aachen runs",
        ["Aachen", "Bonn"],
    ),
    "bpe": (build_bpe_tokenizer, "the cat runs", "the č cat řř č", "řř č cat", ["č", "řř"]),
}


@pytest.fixture(params=BUILDERS)
def case(request):
    build, known, document, title, words = BUILDERS[request.param]
    return build([known] * 20, min_frequency=1), document, title, words


def test_unknown_words_have_ids_of_their_own_and_become_text_again(case):
    tokenizer, document, title, words = case
    size, settings = len(tokenizer), {"return_offsets_mapping": True}
    ids, found = extend_ids(tokenizer([document], **settings), 0, document, tokenizer.unk_token_id, size)
    assert found == words and set(range(size, size + 2)) < set(ids)
    assert [i if i < size else tokenizer.unk_token_id for i in ids] == tokenizer(document)["input_ids"]
    assert decode(tokenizer, ids, words, size) == document
    encoding = tokenizer([title], **settings)
    ids, found = extend_ids(encoding, 0, title, tokenizer.unk_token_id, size, words, grow=False)
    assert found == words and tokenizer.unk_token_id not in ids
    assert decode(tokenizer, ids, words, size) == title
    # A title's word that the document does not have stays unknown.
    ids, _ = extend_ids(encoding, 0, title, tokenizer.unk_token_id, size, words[:1], grow=False)
    assert tokenizer.unk_token_id in ids and size + 1 not in ids


@pytest.mark.parametrize("build", [build_char_tokenizer, build_word_tokenizer, build_bpe_tokenizer])
def test_what_the_tokenizer_reads_alike_is_one_unknown_word(build):
    tokenizer = build(["the cat runs"] * 20, min_frequency=1, lowercase=True)
    pairs = Dataset.from_dict({"source": ["the ÖŽ cat öŽ"], "target": ["Öž runs"]})
    encoded, _ = encode_pairs(pairs, tokenizer, 50, 50, extend=True)
    size, (row,) = len(tokenizer), encoded
    assert tokenizer.unk_token_id not in row["labels"] and max(row["labels"]) >= size
    words = ["ö", "ž"] if build is build_char_tokenizer else ["öž"]
    assert max(row["extended_input_ids"]) == size + len(words) - 1
    assert decode(tokenizer, row["labels"], words, size) == "öž runs"
    # The pipeline writes them so, too.
    read = BidirSeq2SeqPipeline(model=tiny_model(vocab_size=size, use_copy=True), tokenizer=tokenizer)
    inputs, (found,) = read.batch(["the ÖŽ cat öŽ"])
    assert found == words and inputs["extended_input_ids"].tolist() == [row["extended_input_ids"]]


def test_pairs_are_encoded_with_them_and_padded(case):
    tokenizer, document, title, _ = case
    size = len(tokenizer)
    pairs = Dataset.from_dict({"source": [document, document[:4]], "target": [title, title]})
    encoded, _ = encode_pairs(pairs, tokenizer, 50, 50, extend=True)
    batch = TitleCollator(tokenizer, model=tiny_model(vocab_size=size, use_copy=True))(
        list(encoded.remove_columns("length"))
    )
    assert batch["extended_input_ids"].shape == batch["input_ids"].shape
    assert torch.equal(batch["extended_input_ids"] >= size, batch["input_ids"] == tokenizer.unk_token_id)
    assert torch.equal((batch["extended_input_ids"] == 0), (batch["input_ids"] == 0))
    assert int(batch["labels"][0].max()) == size + 1
    loss = tiny_model(vocab_size=size, use_copy=True)(**batch).loss
    assert loss.isfinite()
    # A title knows only words of what is read of its document.
    encoded, _ = encode_pairs(pairs, tokenizer, 3, 50, extend=True)
    for row in encoded:
        assert max(row["labels"]) <= max(*row["extended_input_ids"], size - 1)


def test_metrics_know_them_apart():
    tokenizer = build_word_tokenizer(["the cat runs"] * 3, min_frequency=1)
    size = len(tokenizer)

    class Prediction:
        predictions = torch.tensor([[2, 4, size, 3], [2, 4, size + 1, 3]]).numpy()
        label_ids = torch.tensor([[4, size, 3], [4, size, 3]]).numpy()

    scores = title_metrics(tokenizer)(Prediction())
    assert scores["rouge1"] == pytest.approx(75)


def test_metrics_of_ids_are_those_of_the_texts():
    # Each unknown character counts as one, and one that no title can hold is missed in all.
    tokenizer = build_char_tokenizer(["今天发布新规"] * 20, min_frequency=1)
    size = len(tokenizer)
    document, references = "龘今麤天", ["龘今天麤", "龘发籲规", "籲"]
    titles = ["龘今天布", "麤天规规", "龘"]

    def ids(texts: list[str], end: int):
        read = tokenizer([document, *texts], return_offsets_mapping=True)
        words = extend_ids(read, 0, document, tokenizer.unk_token_id, size)[1]
        args = (tokenizer.unk_token_id, size, words)
        rows = [extend_ids(read, place, text, *args, grow=False)[0] for place, text in enumerate(texts, start=1)]
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, end).numpy()

    class Prediction:
        predictions, label_ids = ids(titles, tokenizer.pad_token_id), ids(references, -100)

    scores = title_metrics(tokenizer)(Prediction())
    scores.pop("gen_len")
    assert scores == pytest.approx(TitleScore().compute(predictions=titles, references=references))
    assert 0 < scores["first4"] < 100
    # Few words that are known leave a title one of words.
    words = build_word_tokenizer(["the cat runs"] * 3, min_frequency=1)
    texts = decode_to_compare(words, [[words.unk_token_id, 4], [4, len(words)]], len(words), are_references=True)
    assert [len(text.split()) for text in texts] == [2, 2] and len({*texts[0].split(), *texts[1].split()}) == 3


@pytest.mark.e2e
@pytest.mark.parametrize("batch_size", [1, 3])
def test_names_that_were_never_seen_are_copied_into_titles(tmp_path, batch_size):
    generator = torch.Generator().manual_seed(0)
    names = [f"name{i}" for i in range(400)]
    with open(tmp_path / "train.jsonl", "w") as file:
        for _ in range(300):
            a, b = torch.randint(400, (2,), generator=generator).tolist()
            file.write(
                json.dumps({"document": f"today {names[a]} met {names[b]}", "title": f"{names[b]} was met"}) + "\n"
            )
    train(
        ModelArguments(
            tokenizer_type="word",
            min_frequency=20,
            embedding_size=32,
            hidden_size=32,
            encoder_layers=1,
            decoder_layers=1,
        ),
        DataArguments(train_file=str(tmp_path / "train.jsonl")),
        TrainingArguments(
            output_dir=str(tmp_path / "model"),
            max_steps=150,
            learning_rate=0.01,
            warmup_steps=10,
            per_device_train_batch_size=16,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) < 12
    documents = ["today Obama met Merkel", "today Merkel met Obama", "", "today Merkel met Merkel"]
    wanted = ["Merkel was met", "Obama was met", "", "Merkel was met"]
    for direction in ("l2r", "r2l", "both"):
        titles = write_titles(model, tokenizer, documents, batch_size=batch_size, decoding_direction=direction)
        assert [candidates[0].text for candidates in titles] == wanted
