"""Whatever settings `generate` is given, it writes titles or names the setting that cannot be."""

from functools import lru_cache
from itertools import product

import pytest
import torch
from conftest import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bidir_seq2seq.ranking_bidir_seq2seq import RANKING_RULES

VOCAB_SIZE = 24
MODELS = {
    "decoder_directions": ["both", "l2r", "r2l"],
    "rnn_type": ["lstm", "gru"],
    "use_copy": [False, True],
    "use_prior": [True, False],
    "use_attention": [True, False],
    "twin_dropout": [0.5, 0.0],
    "twin_partner": ["gold", "own", "none"],
    "twin_memory": ["hidden", "features"],
    "tie_word_embeddings": [False, True],
}
# Of each setting what is sound, and what is not or goes with few others.
SETTINGS = {
    "decoding_direction": ["both", "l2r", "r2l", None, "left", 3],
    "proposals": [
        *("both", "l2r+r2l", "l2r+r2l+both", "l2r", "r2l+drawn", "drawn", None, "l2r+l2r", "", 2),
        *("l2r+r2l+drawn+spliced", "l2r+spliced", "drawn+spliced", "spliced"),
    ],
    "ranking": [*RANKING_RULES, None, "best", 1, {"consensus": 1, "length": -0.1}, {"l2r": 1}, {"r2l": 1, "own": 0.5}],
    "consensus_samples": [1, 3, 0, None, -1, 2.5, True],
    "joint_rescoring": [True, False, None, "yes"],
    "vocabulary_shortlist": [None, 1, 5, 100, 0, -1, 2.5, True],
    "num_beams": [1, 2, 3, 5, 0, -1, 2.5],
    "num_return_sequences": [1, 2, 3, 0, -2],
    "max_new_tokens": [1, 2, 6, 0, -1],
    "max_length": [2, 5, 1, 0],
    "min_new_tokens": [0, 2, 9],
    "min_length": [0, 3, 9],
    "length_penalty": [0.0, 1.0, -1.0, 2.5],
    "early_stopping": [True, False, "never", "soon"],
    "do_sample": [True, False],
    "temperature": [0.5, 1.0, 0.0, -1.0],
    "top_k": [1, 3, 0, -1],
    "top_p": [0.5, 1.0, 0.0, 1.5],
    "no_repeat_ngram_size": [1, 2, 0, -1],
    "encoder_no_repeat_ngram_size": [1, 2],
    "repetition_penalty": [1.0, 2.0, 0.0, -1.0],
    "renormalize_logits": [True, False],
    "bad_words_ids": [5, [5], [[5]], [[5, 6], [7]], [], [[]], [[-1]], [["a"]], [[VOCAB_SIZE + 3]]],
    "sequence_bias": [
        5,
        [5],
        [[]],
        [[[5]]],
        {(5,): 1.0},
        [[[5, 6], -2.0], [[7], 1.0]],
        {(): 1.0},
        [[[], 1.0]],
        {(VOCAB_SIZE,): 1.0},
        [],
    ],
    "suppress_tokens": [[5, 6], [], list(range(VOCAB_SIZE))],
    "forced_bos_token_id": [5, VOCAB_SIZE],
    "forced_eos_token_id": [3, VOCAB_SIZE, -1],
    "eos_token_id": [3, 5, [3, 5], VOCAB_SIZE],
    "decoder_start_token_id": [2, 7],
    "pad_token_id": [0, 5],
    "remove_invalid_values": [True, False],
    "use_cache": [True, False],
    "return_dict_in_generate": [True, False],
    "output_scores": [True, False],
    "output_logits": [True, False],
    "output_attentions": [True, False],
    "output_hidden_states": [True, False],
}
# What transformers calls some of them where they cannot be.
CALLED = {
    "repetition_penalty": "`penalty` has to be",
    **dict.fromkeys(("bad_words_ids", "sequence_bias"), "were being biased"),
}
# The shape of the batch and the places of padding: rows of so many tokens.
BATCHES = st.lists(st.integers(0, 7), max_size=3)
# Few settings at a time, so that many calls are sound.
CALLS = st.lists(st.sampled_from(sorted(SETTINGS)), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(SETTINGS[name]) for name in names})
)


@lru_cache
def model_of(*values):
    config = dict(zip(MODELS, values))
    if config["twin_partner"] != "gold" and (config["twin_memory"] == "features" or config["twin_dropout"] == 0):
        config["twin_partner"] = "gold"
    torch.manual_seed(0)
    return tiny_model(vocab_size=VOCAB_SIZE, **config)


def batch_of(lengths: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(lengths))
    input_ids = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.long)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(4, VOCAB_SIZE, (length,), generator=generator)
    return input_ids


def ids_of(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.sequences


def check(model, lengths, given_settings) -> None:
    input_ids = batch_of(lengths)
    torch.manual_seed(1)
    try:
        output = model.generate(input_ids=input_ids, **{"max_new_tokens": 6, **given_settings})
    except ValueError as error:
        said = str(error)
        assert any(name in said or CALLED.get(name, name) in said for name in given_settings), (given_settings, error)
        return
    ids = ids_of(output)
    number = given_settings.get("num_return_sequences", 1)
    assert ids.shape[0] == len(lengths) * number
    assert ids.numel() == 0 or (ids.min() >= 0 and ids.max() < VOCAB_SIZE)
    if not isinstance(output, torch.Tensor) and output.get("sequences_scores") is not None:
        assert not output.sequences_scores.isnan().any()
    if not lengths or given_settings.get("do_sample"):
        return
    alone = ids_of(model.generate(input_ids=input_ids[:1], **{"max_new_tokens": 6, **given_settings}))
    width = max(ids.shape[1], alone.shape[1])
    wide, wide_alone = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (ids, alone))
    assert torch.equal(wide[:number], wide_alone), given_settings


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.tuples(*map(st.sampled_from, MODELS.values())), BATCHES, CALLS)
def test_any_settings_give_titles_or_name_what_cannot_be(values, lengths, given_settings):
    check(model_of(*values), lengths, given_settings)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.tuples(*map(st.sampled_from, MODELS.values())), BATCHES, CALLS)
def test_thousands_of_settings_do(values, lengths, given_settings):
    check(model_of(*values), lengths, given_settings)


def test_every_value_by_itself_gives_titles_or_names_what_cannot_be():
    model = model_of(*(values[0] for values in MODELS.values()))
    for name, values in SETTINGS.items():
        for value in values:
            check(model, [3, 5], {name: value})


def test_every_pair_of_values_of_ours_does():
    model = model_of(*(values[0] for values in MODELS.values()))
    ours = ("decoding_direction", "proposals", "ranking", "joint_rescoring")
    for values in product(*(SETTINGS[name] for name in ours)):
        check(model, [3], dict(zip(ours, values)))
