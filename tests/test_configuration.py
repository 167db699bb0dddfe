import pytest
from transformers import AutoConfig

from bidir_seq2seq import BidirSeq2SeqConfig
from bidir_seq2seq.configuration_bidir_seq2seq import FORMAT_VERSION


def test_round_trip(tmp_path):
    config = BidirSeq2SeqConfig(vocab_size=50, rnn_type="gru", twin_dropout=0.25, label_smoothing=0.1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, BidirSeq2SeqConfig)
    names = ("vocab_size", "rnn_type", "twin_dropout", "label_smoothing", "bos_token_id", "format_version")
    assert [getattr(loaded, name) for name in names] == [50, "gru", 0.25, 0.1, 2, 1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 7, "hidden_size=7 must be even"),
        ("hidden_size", 0, "hidden_size=0 must be at least 1"),
        ("decoder_layers", 0, "decoder_layers=0"),
        ("num_attention_heads", 0, "num_attention_heads=0"),
        ("rnn_type", "rnn", "rnn_type='rnn' must be one of lstm, gru"),
        ("decoder_directions", "l2l", "decoder_directions='l2l' must be one of both, l2r, r2l"),
        ("twin_memory", "x", "twin_memory='x'"),
        ("twin_dropout", 1.5, "twin_dropout=1.5"),
        ("dropout", 1.0, "dropout=1.0"),
        ("label_smoothing", -0.1, "label_smoothing=-0.1"),
        ("layer_norm_eps", 0.0, "layer_norm_eps=0.0"),
        ("pad_token_id", 24, "pad_token_id=24 must be an id in the vocabulary"),
        ("unk_token_id", None, "unk_token_id=None"),
        ("eos_token_id", 0, "pad_token_id and eos_token_id are both 0"),
        ("bos_token_id", 3, "bos_token_id and eos_token_id are both 3"),
        ("decoder_start_token_id", 3, "decoder_start_token_id=3 must equal bos_token_id"),
        ("format_version", FORMAT_VERSION + 1, "upgrade"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(field, value, message):
    with pytest.raises(ValueError, match=message):
        BidirSeq2SeqConfig(**{"vocab_size": 24, field: value})


def test_the_reference_preset_can_be_overridden():
    config = BidirSeq2SeqConfig.reference(vocab_size=30, hidden_size=64)
    assert (config.twin_memory, config.layer_norm_eps, config.twin_dropout) == ("features", 1e-14, 0.0)
    assert (config.vocab_size, config.hidden_size) == (30, 64)
