import logging
import math

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration, GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from bidir_seq2seq import BidirSeq2SeqPipeline
from bidir_seq2seq.tokenization import build_char_tokenizer

DOCUMENTS = ["abc", "", "fedcba", "  \n", "hgfedcbaabcdefgh", "h"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_char_tokenizer(["abcdefgh[END]" * 3], min_frequency=1, model_max_length=12)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A checkpoint whose titles differ from text to text."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    model = tiny_model(vocab_size=len(tokenizer))
    torch.nn.init.constant_(model.prior.log_scale, 2.5)
    model.generation_config.max_length = 8
    model.generation_config.min_length = 4
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def write(folder):
    return pipeline("bidir-seq2seq", model=folder, num_beams=3)


def texts(titles):
    return [[title["generated_text"] for title in candidates] for candidates in titles]


def test_a_list_gives_a_list_of_titles_for_each_text_in_order(write):
    titles = write(DOCUMENTS, batch_size=4)
    assert len(set(map(str, titles))) > 2 and all(set(title) == {"generated_text"} for [title] in titles)
    assert titles == [write(document) for document in DOCUMENTS]
    assert titles[1] == titles[3] == [{"generated_text": ""}]


def test_titles_are_those_of_generate(write, tokenizer):
    batch = tokenizer(["abc", "fedcba"], padding=True, return_tensors="pt")
    output = write.model.generate(
        **batch, num_beams=3, num_return_sequences=2, return_dict_in_generate=True, output_scores=True
    )
    titles = write(["abc", "fedcba"], batch_size=2, num_return_sequences=2, return_details=True)
    flat = [title for candidates in titles for title in candidates]
    assert [title["generated_text"] for title in flat] == tokenizer.batch_decode(output.sequences, True)
    assert [title["score"] for title in flat] == pytest.approx(output.sequences_scores.tolist())
    assert [title["direction"] for title in flat] == output.directions


@pytest.mark.parametrize("batch_size", [1, 4])
def test_empty_texts_give_an_empty_title_with_details_too(write, batch_size):
    nothing = [{"generated_text": "", "score": None, "direction": None, "truncated": False}]
    details = {"return_details": True, "num_return_sequences": 2, "batch_size": batch_size}
    assert write([], **details) == []
    assert write("", **details) == nothing
    assert write(["", " \n", "\t"], **details) == [nothing] * 3
    titles = write(DOCUMENTS, **details)
    assert titles[1] == titles[3] == nothing and [len(candidates) for candidates in titles] == [2, 1, 2, 1, 2, 2]


def test_empty_texts_never_reach_the_model(write, monkeypatch):
    seen = []
    encoder_forward = write.model.model.encoder.forward

    def forward(input_ids, attention_mask, **kwargs):
        seen.append(attention_mask.sum(1))
        return encoder_forward(input_ids, attention_mask, **kwargs)

    monkeypatch.setattr(write.model.model.encoder, "forward", forward)
    write(DOCUMENTS, batch_size=3)
    assert [lengths.tolist() for lengths in seen] == [[12, 7, 4], [2]]


def test_details_say_who_wrote_and_how_sure(write):
    for direction in ("both", "l2r", "r2l"):
        candidates = write("fedcba", return_details=True, num_return_sequences=3, decoding_direction=direction)
        scores = [title["score"] for title in candidates]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True) and scores[0] < 0
        assert {title["direction"] for title in candidates} <= ({"l2r", "r2l"} if direction == "both" else {direction})
    [greedy] = write("fedcba", return_details=True, num_beams=1, decoding_direction="r2l")
    assert greedy["score"] is None and greedy["direction"] == "r2l"


def test_a_generation_config_decides_the_direction_that_is_told(write):
    config = GenerationConfig(decoding_direction="r2l", num_beams=2, max_length=8)
    assert {title["direction"] for [title] in write(["abc", "h"], generation_config=config, return_details=True)} == {
        "r2l"
    }
    assert config.return_dict_in_generate is not True


def test_cut_texts_are_flagged_and_counted_once_a_call(write, caplog):
    long = "abcdefgh" * 2
    with caplog.at_level(logging.WARNING, "bidir_seq2seq.pipeline"):
        flags = [title["truncated"] for [title] in write([*DOCUMENTS, long], batch_size=2, return_details=True)]
        assert flags == [len(document) > 11 for document in [*DOCUMENTS, long]]
        assert [record.getMessage()[:38] for record in caplog.records] == ["2 of 7 documents are longer than 12 to"]
        caplog.clear()
        write("abc", max_source_length=3)
        assert "1 of 1 documents are longer than 3 tokens" in caplog.text
        caplog.clear()
        stream = write(document for document in [long, "abc", long])
        assert caplog.text == ""
        assert len(list(stream)) == 3 and "2 of 3 documents" in caplog.text
        caplog.clear()
        write(["abc", "abcdefgh"])
        assert caplog.text == ""


def test_a_cut_text_keeps_its_end_as_in_training(write, tokenizer):
    ids = write.preprocess("abcdefgh", max_source_length=4)["input_ids"][0].tolist()
    assert ids == [*tokenizer.convert_tokens_to_ids(["a", "b", "c"]), tokenizer.eos_token_id]
    with pytest.raises(ValueError, match="max_source_length=1 leaves no room"):
        write("abc", max_source_length=1)


def test_unknown_tokens_are_warned_of_once_a_call(write, caplog):
    with caplog.at_level(logging.WARNING, "bidir_seq2seq.pipeline"):
        write(["abcdefg☃", "abc", "abc"])
        assert caplog.text == ""
        write(["☃☃☃☃", "ab"])
        assert [record.getMessage()[:4] for record in caplog.records] == ["50% "]


def test_special_tokens_in_a_text_are_text(write, tokenizer):
    ids = write.preprocess("ab[END]")["input_ids"][0].tolist()
    assert ids == [*tokenizer.convert_tokens_to_ids(list("ab[END]")), tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a", 5], "document 1 is 5, which is not text"),
        (["a", "b\ud800"], r"document 1 holds half a sign, 'b\\ud800'"),
        (["a", None], "document 1 is None, which is not text"),
        ([{"role": "user", "content": "a"}], "document 0 is {"),
        (5, "a document is 5, which is not text"),
        ({"source": "a"}, "a document is {'source': 'a'}, which is not text"),
    ],
    ids=str,
)
def test_what_is_not_text_is_refused_by_name(write, inputs, message):
    with pytest.raises(ValueError, match=message):
        write(inputs)


def test_datasets_and_generators_stream(write):
    expected = write(DOCUMENTS, batch_size=1)
    dataset = Dataset.from_dict({"source": DOCUMENTS})
    stream = write(KeyDataset(dataset, "source"), batch_size=4)
    assert len(stream) == len(DOCUMENTS) and list(stream) == expected
    read = []

    def documents():
        for document in DOCUMENTS:
            read.append(document)
            yield document

    stream = iter(write(documents(), batch_size=2))
    assert next(stream) == expected[0] and len(read) == 2
    assert [expected[0], *stream] == expected
    assert write(dataset["source"]) == write(tuple(DOCUMENTS)) == expected
    with pytest.raises(ValueError, match="a document is 5"):
        list(write(document for document in ["a", 5]))


def test_texts_of_similar_length_share_a_batch(write, monkeypatch):
    shapes = []
    generate = write.model.generate
    monkeypatch.setattr(
        write.model, "generate", lambda **kwargs: (shapes.append(kwargs["input_ids"].shape), generate(**kwargs))[1]
    )
    write(["a", "abcdefgh", "b", "hgfedcba"], batch_size=2)
    assert shapes == [(2, 9), (2, 2)]


def test_every_argument_of_generate_is_taken(write):
    def refuse_b(batch_id, input_ids):
        return [index for index in range(len(write.tokenizer)) if index != b]

    b = write.tokenizer.convert_tokens_to_ids("b")
    [title] = write("bbb", decoding_direction="l2r", prefix_allowed_tokens_fn=refuse_b, max_new_tokens=3)
    assert len(title["generated_text"]) <= 3 and "b" not in title["generated_text"]
    torch.manual_seed(0)
    sampled = write("abc", decoding_direction="l2r", do_sample=True, num_beams=1, num_return_sequences=5)
    assert len({title["generated_text"] for title in sampled}) > 1
    with pytest.raises(ValueError, match="num_beam'"):
        write("abc", num_beam=3)


def test_arguments_at_the_start_hold_for_every_call_and_yield_to_the_call(folder):
    r2l = pipeline(
        "bidir-seq2seq", model=folder, decoding_direction="r2l", num_beams=2, return_details=True, max_source_length=3
    )
    [title] = r2l("abcdef")
    assert title["direction"] == "r2l" and title["truncated"]
    [title] = r2l("abcdef", decoding_direction="l2r", max_source_length=8)
    assert title["direction"] == "l2r" and not title["truncated"]
    assert [set(title) for title in r2l("abcdef", return_details=False)] == [{"generated_text"}]


def test_it_takes_objects_and_leaves_training_mode(folder, tokenizer, write):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).train()
    before = model.generation_config.to_dict()
    from_objects = pipeline("bidir-seq2seq", model=model, tokenizer=tokenizer, num_beams=3)
    assert isinstance(from_objects, BidirSeq2SeqPipeline)
    assert from_objects(DOCUMENTS, batch_size=3) == write(DOCUMENTS)
    assert not model.training and torch.is_grad_enabled()
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_stand_on_either_side(folder, write, side):
    padded = pipeline("bidir-seq2seq", model=folder, num_beams=3)
    padded.tokenizer.padding_side = side
    assert texts(padded(DOCUMENTS, batch_size=6)) == texts(write(DOCUMENTS))


def test_what_it_saves_it_loads_without_trust(write, tmp_path):
    write.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.py")) == [] and not hasattr(write.model.config, "custom_pipelines")
    assert pipeline("bidir-seq2seq", model=str(tmp_path), num_beams=3)(DOCUMENTS) == write(DOCUMENTS)


def test_a_tokenizer_without_an_end_token_is_enough(folder, write):
    bare = pipeline("bidir-seq2seq", model=folder, num_beams=3)
    bare.tokenizer.backend_tokenizer.post_processor = None
    titles = texts(bare(DOCUMENTS, batch_size=3))
    assert titles[1] == titles[3] == [""] and titles == texts([bare(document) for document in DOCUMENTS])


def test_other_models_write_from_the_left(tokenizer):
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "max_position_embeddings": 32}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
    config = BartConfig(vocab_size=len(tokenizer), forced_eos_token_id=None, **sizes, **heads, **special)
    write = pipeline("bidir-seq2seq", model=BartForConditionalGeneration(config), tokenizer=tokenizer)
    titles = write(DOCUMENTS, batch_size=3, return_details=True, num_beams=2, max_new_tokens=4)
    assert titles[0][0]["direction"] == "l2r" and titles[0][0]["score"] < 0 and titles[1][0]["generated_text"] == ""


def test_fewer_titles_than_were_asked_for_are_not_filled_up(folder):
    write = pipeline("bidir-seq2seq", model=folder)
    settings = {"num_beams": 12, "num_return_sequences": 12, "proposals": "drawn", "consensus_samples": 6}
    model, tokenizer = write.model, write.tokenizer
    # Nearly sure of every word.
    model.lm_head.weight.data *= 4
    (titles,) = write(["abcabc"], return_details=True, **settings)
    assert 1 <= len(titles) < 12 and len({title["generated_text"] for title in titles}) == len(titles)
    assert all(math.isfinite(title["score"]) for title in titles)
    inputs, _ = write.batch(["abcabc"])
    output = model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)
    assert output.sequences_scores.isfinite().sum() == len(titles)
    nothing = output.sequences[~output.sequences_scores.isfinite()]
    assert len(nothing) == 12 - len(titles) and not (nothing[:, 1:] != tokenizer.pad_token_id).any()
