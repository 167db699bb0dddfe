import pytest
import torch
from conftest import random_pairs, tiny_model

from bidir_seq2seq.cache_bidir_seq2seq import CACHE_NAME, BidirSeq2SeqCache, RecurrentStateLayer


def filled_layer() -> RecurrentStateLayer:
    layer = RecurrentStateLayer()
    layer.advance((torch.arange(6.0).view(1, 3, 2), torch.arange(6.0).view(1, 3, 2) + 10), num_tokens=4)
    return layer


def test_reordering_moves_rows_of_every_part():
    layer = filled_layer()
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    assert layer.state[0][0, :, 0].tolist() == [4, 4, 0]
    assert layer.state[1][0, :, 0].tolist() == [14, 14, 10]


def test_length_reset_and_repeat():
    cache = BidirSeq2SeqCache(num_layers=2)
    assert cache.get_seq_length() == 0
    cache.layers[0].advance((torch.zeros(1, 2, 3),), num_tokens=5)
    assert cache.get_seq_length() == 5
    assert cache.layers[0].get_mask_sizes(1) == (6, 0)
    cache.layers[0].batch_repeat_interleave(2)
    assert cache.layers[0].state[0].shape == (1, 4, 3)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.layers[0].state is None


def test_it_says_that_it_has_no_keys():
    with pytest.raises(NotImplementedError, match="advance"):
        filled_layer().update(None, None)


def test_a_recorded_past_is_taken_back_token_by_token():
    layer = RecurrentStateLayer()
    layer.activate_past_recording()
    states = [(torch.full((1, 2, 3), float(step)),) for step in range(4)]
    for state in states[:3]:
        layer.advance(state, 1)
    layer.crop(0)
    assert layer.state is states[2]
    layer.crop(-1)
    layer.advance(states[3], 1)
    layer.crop(-2)
    assert layer.state is states[0] and layer.get_seq_length() == 1
    layer.crop(-1)
    assert layer.state is None and layer.get_seq_length() == 0
    with pytest.raises(ValueError, match="crop\\(-1\\) takes a number from 0"):
        layer.crop(-1)
    with pytest.raises(ValueError, match="crop\\(1\\)"):
        layer.crop(1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("of_base", [False, True])
def test_it_goes_by_either_name(name, of_base):
    """transformers before 5.24 asks for the one, and from then on for the other."""
    model = tiny_model()
    model = model.model if of_base else model
    input_ids, _ = random_pairs(batch_size=2)
    titles = torch.tensor([[2, 5, 6], [2, 7, 8]])
    settings = {"input_ids": input_ids, "decoding_direction": "l2r"}
    whole = model(**settings, decoder_input_ids=titles)
    past = model(**settings, decoder_input_ids=titles[:, :2], use_cache=True)[CACHE_NAME]
    assert past.get_seq_length() == 2
    rest = model(**settings, decoder_input_ids=titles[:, 2:], **{name: past})
    assert rest[CACHE_NAME] is past and past.get_seq_length() == 3
    torch.testing.assert_close(rest[0][:, 0], whole[0][:, 2])


def test_both_names_at_once_are_refused():
    past = BidirSeq2SeqCache(num_layers=2)
    with pytest.raises(ValueError, match="two names of the same"):
        tiny_model()(torch.tensor([[5]]), decoder_input_ids=torch.tensor([[2]]), cache=past, past_key_values=past)
