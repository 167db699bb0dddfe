import pytest
from conftest import tiny_model
from datasets import Dataset

from bidir_seq2seq.evaluation import available_systems, format_table, predict, score
from bidir_seq2seq.tokenization import build_char_tokenizer

PAIRS = Dataset.from_dict({"source": ["abcdef", "fedcba", "abba"], "target": ["abc", "fed", "ab"]})


def test_every_system_is_predicted_and_scored():
    tokenizer = build_char_tokenizer(["abcdef"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    systems = available_systems(model)
    assert systems == ["lead", "l2r", "r2l", "both", "joint"]
    predictions = predict(
        model, tokenizer, PAIRS, systems, tokenization="char", progress=False, num_beams=2, max_new_tokens=4
    )
    # The mean reference has 8/3 characters.
    assert predictions["lead"] == ["abc", "fed", "abb"]
    results = score(predictions, PAIRS["target"], tokenization="char")
    assert results["lead"]["rougeL"] > 90 and "rougeL_p_value" in results["joint"]
    table = format_table(results).splitlines()
    assert [line.split()[0] for line in table[1:]] == systems and "against lead" in table[0]


def test_what_a_model_cannot_run_is_not_offered():
    assert available_systems(tiny_model(decoder_directions="r2l")) == ["lead", "r2l"]
    assert "joint" not in available_systems(tiny_model(twin_dropout=0.0))
    with pytest.raises(ValueError, match="system 'r2l' is not among"):
        predict(tiny_model(decoder_directions="l2r"), None, PAIRS, ["r2l"])
