import copy
import math

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, TextStreamer, WatermarkingConfig
from transformers.generation import utils as generation_utils
from transformers.modeling_outputs import BaseModelOutput

from bidir_seq2seq.generation_bidir_seq2seq import ID_SETTINGS
from bidir_seq2seq.tokenization import build_bpe_tokenizer

PAD, UNK, START, END = 0, 1, 2, 3
SEARCHES = [
    {},
    {"length_penalty": 0.0, "early_stopping": "never"},
    {"length_penalty": 2.0, "early_stopping": True},
    {"no_repeat_ngram_size": 2, "min_length": 4},
    {"bad_words_ids": [[7], [8, 9]], "repetition_penalty": 1.3},
]


def without_twin(**overrides):
    """A twin model whose decoders see nothing of each other."""
    model = tiny_model(**overrides)
    with torch.no_grad():
        for decoder in (model.model.decoder, model.model.r2l_decoder):
            decoder.twin_attention.value.weight.zero_()
    return model


def content(sequence) -> list[int]:
    return [token for token in sequence.tolist() if token not in (PAD, START, END)]


def check_form(sequences: torch.Tensor):
    """Every row is start, content, end (unless it was cut), pads; nothing else that is special."""
    for row in sequences.tolist():
        assert row[0] == START
        body = row[1:]
        size = body.index(END) if END in body else len([t for t in body if t != PAD])
        assert all(token > END for token in body[:size])
        assert all(token == PAD for token in body[size + 1 :])


# One direction


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "length_penalty": 0.0}])
@pytest.mark.parametrize("variant", [{}, {"rnn_type": "gru"}, {"use_attention": False}, {"use_copy": True}], ids=str)
def test_cached_steps_equal_reruns(direction, settings, variant):
    model = tiny_model(**variant)
    input_ids, _ = random_pairs()
    settings = {**settings, "decoding_direction": direction, "max_new_tokens": 7}
    cached = model.generate(input_ids, **settings, use_cache=True)
    assert torch.equal(cached, model.generate(input_ids, **settings, use_cache=False))
    check_form(cached)


def test_greedy_is_the_best_token_at_each_step():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=1)
    ids = [START]
    while len(ids) < 8 and ids[-1] != END:
        logits = model(input_ids=input_ids, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[[PAD, UNK, START]] = -math.inf
        ids.append(int(logits.argmax()))
    written = model.generate(input_ids, decoding_direction="l2r", max_new_tokens=7)
    assert written[0].tolist() == ids


def test_right_to_left_is_left_to_right_of_the_mirrored_model():
    model = tiny_model(decoder_directions="r2l")
    mirrored = tiny_model(decoder_directions="l2r")
    state = {name.replace("r2l_decoder", "decoder"): value for name, value in model.state_dict().items()}
    # Start and end change places, in the embedding, the output layer and the prior.
    for name in (
        "model.encoder.embed_tokens.weight",
        "lm_head.weight",
        "lm_head.bias",
        "prior.log_scale",
        "prior.shift",
    ):
        state[name] = state[name][[0, 1, 3, 2, *range(4, 24)]]
    mirrored.load_state_dict(state)
    input_ids, _ = random_pairs()
    settings = {"num_beams": 3, "max_new_tokens": 7, "no_repeat_ngram_size": 2}
    from_right = model.generate(input_ids, **settings)
    from_left = mirrored.generate(input_ids, **settings)
    for right, left in zip(from_right, from_left):
        assert content(right) == content(left)[::-1]


def test_streaming_left_to_right(capsys):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return " ".join(str(int(i)) for i in ids)

    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=1)
    written = model.generate(
        input_ids, decoding_direction="l2r", max_new_tokens=5, streamer=TextStreamer(Tokenizer(), skip_prompt=True)
    )
    assert capsys.readouterr().out.split() == [str(token) for token in written[0, 1:].tolist()]


# Both directions


def greedy_twins(model, input_ids, max_length: int):
    """The bidirectional search with one hypothesis a side, by rerunning everything at every step."""
    sides = {"l2r": [[START], 0.0, END, [PAD, UNK, START]], "r2l": [[END], 0.0, START, [PAD, UNK, END]]}
    finished = {}
    while len(finished) < 2 and len(sides["l2r"][0]) < max_length:
        outputs = model(
            input_ids=input_ids,
            decoder_input_ids=torch.tensor([sides["l2r"][0]]),
            r2l_decoder_input_ids=torch.tensor([sides["r2l"][0]]),
            use_twin=True,
        )
        for name, logits in (("l2r", outputs.logits), ("r2l", outputs.r2l_logits)):
            ids, total, end, never = sides[name]
            log_probs = logits[0, -1].log_softmax(-1)
            log_probs[never] = -math.inf
            # The pool wants K ended titles; a live beam goes on beside it with the best token that does not end.
            if name not in finished and int(log_probs.argmax()) == end:
                finished[name] = (ids[1:], (total + float(log_probs[end])) / len(ids))
            log_probs[end] = -math.inf
            ids.append(int(log_probs.argmax()))
            sides[name][1] = total + float(log_probs.max())
            if name not in finished and len(ids) == max_length:
                finished[name] = (ids[1:], sides[name][1] / (len(ids) - 1))
    name = max(finished, key=lambda side: finished[side][1])
    title, score = finished[name]
    return (title if name == "l2r" else title[::-1]), score, name


@torch.no_grad()
@pytest.mark.parametrize(
    "variant", [{}, {"twin_memory": "features"}, {"rnn_type": "gru"}, {"use_copy": True}], ids=str
)
def test_one_beam_is_the_greedy_twin_rerun_from_scratch(variant):
    model = tiny_model(**variant)
    input_ids, _ = random_pairs(batch_size=6)
    output = model.generate(input_ids, max_length=8, early_stopping=True, return_dict_in_generate=True)
    check_form(output.sequences)
    for row in range(6):
        title, score, name = greedy_twins(model, input_ids[row : row + 1], max_length=8)
        assert content(output.sequences[row]) == title
        assert output.directions[row] == name
        assert math.isclose(output.sequences_scores[row], score, rel_tol=1e-4)


def exhaustive_search(model, input_ids, max_length: int, length_penalty: float):
    """Every title that the search could write about one document, with its score under the search's own rule.

    Every unfinished prefix of one side is a partner of every unfinished prefix of the other.
    """
    vocab_size = model.config.vocab_size
    ends = {"l2r": (START, END, [PAD, UNK, START]), "r2l": (END, START, [PAD, UNK, END])}
    prefixes = {name: {(start,): 0.0} for name, (start, _, _) in ends.items()}
    titles = {}
    for length in range(1, max_length):
        l2r, r2l = (torch.tensor(list(prefixes[name])) for name in ("l2r", "r2l"))
        rows = len(l2r) * len(r2l)
        outputs = model(
            input_ids=input_ids.expand(rows, -1),
            decoder_input_ids=l2r.repeat_interleave(len(r2l), 0),
            r2l_decoder_input_ids=r2l.repeat(len(l2r), 1),
            use_twin=True,
        )
        pair_probs = [x[:, -1].softmax(-1).view(len(l2r), len(r2l), -1) for x in (outputs.logits, outputs.r2l_logits)]
        probs = {"l2r": pair_probs[0].mean(1), "r2l": pair_probs[1].mean(0)}
        for name, (_, end, never) in ends.items():
            grown = {}
            for (prefix, total), row in zip(prefixes[name].items(), probs[name]):
                for token in set(range(vocab_size)) - set(never):
                    score = total + math.log(row[token])
                    if token == end or length == max_length - 1:
                        body = prefix[1:] if token == end else (*prefix[1:], token)
                        key = (body if name == "l2r" else body[::-1], token == end)
                        normalised = score / length**length_penalty
                        titles[key] = max(titles.get(key, (-math.inf, "")), (normalised, name))
                    else:
                        grown[(*prefix, token)] = score
            prefixes[name] = grown
    return sorted(((score, title, name) for (title, _), (score, name) in titles.items()), reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("vocab_size", [5, 6])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("variant", [{}, {"twin_memory": "features"}, {"use_copy": True}], ids=str)
def test_a_wide_search_finds_what_brute_force_finds(vocab_size, length_penalty, variant):
    model = tiny_model(vocab_size=vocab_size, **variant)
    for length in (2, 3):
        input_ids = torch.randint(4, vocab_size, (1, length))
        output = model.generate(
            input_ids,
            num_beams=40,
            num_return_sequences=4,
            max_length=5,
            length_penalty=length_penalty,
            early_stopping="never",
            return_dict_in_generate=True,
        )
        expected = exhaustive_search(model, input_ids, max_length=5, length_penalty=length_penalty)[:4]
        assert [tuple(content(row)) for row in output.sequences] == [title for _, title, _ in expected]
        assert output.directions == [name for _, _, name in expected]
        torch.testing.assert_close(output.sequences_scores, torch.tensor([score for score, _, _ in expected]))


@pytest.mark.parametrize("settings", SEARCHES, ids=str)
@pytest.mark.parametrize("num_beams", [1, 2, 3, 5])
def test_without_twin_attention_it_is_two_independent_beams(settings, num_beams):
    model = without_twin()
    input_ids, _ = random_pairs(batch_size=5)
    settings = {**settings, "max_length": 9, "num_beams": num_beams, "return_dict_in_generate": True}
    if num_beams == 1:
        # transformers' greedy search stops at the first end, has no score, and penalises logits.
        settings = {**settings, "early_stopping": True, "repetition_penalty": 1.0}
    one_way = {
        name: model.generate(
            input_ids, **settings, num_return_sequences=num_beams, decoding_direction=name, output_scores=True
        )
        for name in ("l2r", "r2l")
    }
    both = model.generate(input_ids, **settings, num_return_sequences=num_beams)
    check_form(both.sequences)
    for row in range(5):
        rows = slice(row * num_beams, (row + 1) * num_beams)
        if num_beams == 1:
            ours = content(both.sequences[row])
            assert ours == content(one_way[both.directions[row]].sequences[row])
            continue
        best = {}
        for output in one_way.values():
            for sequence, score in zip(output.sequences[rows], output.sequences_scores[rows]):
                title = tuple(content(sequence))
                best[title] = max(float(score), best.get(title, -math.inf))
        merged = sorted(best.items(), key=lambda item: -item[1])[:num_beams]
        assert [tuple(content(sequence)) for sequence in both.sequences[rows]] == [title for title, _ in merged]
        expected = torch.tensor([score for _, score in merged])
        torch.testing.assert_close(both.sequences_scores[rows], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("settings", [{}, {"joint_rescoring": True}, {"decoding_direction": "r2l"}], ids=str)
@pytest.mark.parametrize("variant", [{}, {"use_copy": True}], ids=str)
def test_a_row_does_not_depend_on_its_batch_or_its_padding(side, settings, variant):
    model = tiny_model(**variant)
    settings = {**settings, "num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    settings |= {"return_dict_in_generate": True, "output_scores": True}
    input_ids, _ = random_pairs(batch_size=5)
    if side == "left":
        for row in input_ids:
            row.copy_(torch.cat([row[row == PAD], row[row != PAD]]))
    together = model.generate(input_ids, attention_mask=(input_ids != PAD).long(), **settings)
    for row in range(5):
        alone = model.generate(input_ids[row][input_ids[row] != PAD][None], **settings)
        for candidate in range(2):
            sequence = together.sequences[2 * row + candidate]
            assert content(sequence) == content(alone.sequences[candidate])
            torch.testing.assert_close(
                together.sequences_scores[2 * row + candidate], alone.sequences_scores[candidate]
            )


@pytest.mark.parametrize("direction", ["both", "l2r", "r2l"])
def test_length_and_repetition_limits_hold_in_every_direction(direction):
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=6)
    settings = {"decoding_direction": direction, "num_beams": 3, "num_return_sequences": 3}
    long = model.generate(input_ids, **settings, min_length=6, max_length=9, no_repeat_ngram_size=2)
    for row in long:
        words = content(row)
        assert len(words) >= 5
        pairs = list(zip(words, words[1:]))
        assert len(pairs) == len(set(pairs))
    exact = model.generate(input_ids, **settings, min_new_tokens=5, max_new_tokens=5)
    assert exact.shape == (18, 6) and all(len(content(row)) == 5 or END in row.tolist() for row in exact)
    unbiased = model.generate(input_ids, **settings, max_length=9)
    banned = content(unbiased[0])[:2]
    without = model.generate(input_ids, **settings, max_length=9, bad_words_ids=[banned])
    for row in without:
        words = content(row)
        assert banned not in [words[i : i + 2] for i in range(len(words))]


def test_joint_rescoring_ranks_by_both_directions_alone():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=3)
    settings = {"num_beams": 4, "num_return_sequences": 4, "max_length": 8, "length_penalty": 1.0}
    output = model.generate(input_ids, **settings, joint_rescoring=True, return_dict_in_generate=True)
    scores = output.sequences_scores.view(3, 4)
    assert torch.equal(scores, scores.sort(dim=1, descending=True).values)
    for index, sequence in enumerate(output.sequences):
        labels = sequence[1:][sequence[1:] != PAD][None]
        source = input_ids[index // 4][None]
        forced = model(input_ids=source, labels=labels, use_twin=False)
        # The loss is the mean over tokens and over both directions of -log p.
        assert math.isclose(float(output.sequences_scores[index]), -forced.loss.item(), rel_tol=1e-4)
    plain = model.generate(input_ids, **settings)
    assert not torch.equal(plain, output.sequences[:, : plain.shape[1]])


def test_sequences_are_distinct_and_sorted():
    output = without_twin().generate(
        random_pairs()[0], num_beams=5, num_return_sequences=5, max_length=6, return_dict_in_generate=True
    )
    for row in range(4):
        titles = [tuple(s.tolist()) for s in output.sequences[5 * row : 5 * row + 5]]
        assert len(set(titles)) == 5
        scores = output.sequences_scores[5 * row : 5 * row + 5]
        assert torch.equal(scores, scores.sort(descending=True).values)
    assert set(output.directions) <= {"l2r", "r2l"}


def test_a_vocabulary_smaller_than_the_beam():
    model = tiny_model(vocab_size=5)
    output = model.generate(
        torch.tensor([[4, 4]]), num_beams=8, num_return_sequences=8, max_length=4, return_dict_in_generate=True
    )
    check_form(output.sequences)
    # Four titles exist: of no, one, two and (cut) three words.
    assert output.sequences_scores.isfinite().sum() == 4


def test_special_tokens_are_never_written():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.bias[[PAD, UNK, START, END]] += 20
    input_ids, _ = random_pairs()
    for direction in ("both", "l2r", "r2l"):
        for num_beams in (1, 3):
            check_form(
                model.generate(
                    input_ids, decoding_direction=direction, num_beams=num_beams, min_new_tokens=3, max_new_tokens=6
                )
            )


# Flags


class SilentStreamer:
    def put(self, value):
        pass

    def end(self):
        pass


def test_what_a_config_says_has_been_said_in_the_call():
    model = tiny_model()
    input_ids, _ = random_pairs()
    for ranking, message in (("joint", "ranking='joint' needs decoding_direction='both'"), ("best", "must be one of")):
        with pytest.raises(ValueError, match=message):
            model.generate(input_ids, GenerationConfig(decoding_direction="l2r", ranking=ranking))
    asked = {"decoding_direction": "l2r", "num_beams": 3, "max_length": 7}
    plain, compared = model.generate(input_ids, **asked), model.generate(input_ids, **asked, ranking="consensus")
    assert torch.equal(model.generate(input_ids, GenerationConfig(**asked, ranking="consensus")), compared)
    # What is said beside it comes first, by whichever of its two names.
    joint = GenerationConfig(joint_rescoring=True, num_beams=3, max_length=7)
    own = model.generate(input_ids, ranking="own", num_beams=3, max_length=7)
    assert torch.equal(model.generate(input_ids, joint, ranking="own"), own)
    both = GenerationConfig(ranking="consensus", num_beams=3, max_length=7)
    assert torch.equal(model.generate(input_ids, both, joint_rescoring=False), own)
    # But a copy of the model's own says no more than the model, whose ranking is meant for both directions.
    model.generation_config.update(ranking={"l2r": 1, "r2l": 1}, proposals="l2r+r2l+drawn")
    copied = copy.deepcopy(model.generation_config)
    copied.update(**asked)
    assert torch.equal(model.generate(input_ids, copied), plain) and not torch.equal(plain, compared)
    model.generation_config.ranking = "best"
    with pytest.raises(ValueError, match="ranking='best' must be one of"):
        model.generate(input_ids, decoding_direction="l2r")


def test_flags_are_kept_by_a_checkpoint_and_taken_from_a_config(tmp_path):
    model = tiny_model()
    assert model.generation_config.decoding_direction == "both"
    model.generation_config.decoding_direction = "r2l"
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert loaded.generation_config.decoding_direction == "r2l"
    input_ids, _ = random_pairs()
    settings = {"num_beams": 2, "max_new_tokens": 6}
    expected = model.generate(input_ids, **settings, decoding_direction="r2l")
    assert torch.equal(loaded.generate(input_ids, **settings), expected)
    assert torch.equal(model.generate(input_ids, GenerationConfig(**settings)), expected)
    l2r = model.generate(input_ids, GenerationConfig(**settings), decoding_direction="l2r")
    assert torch.equal(l2r, model.generate(input_ids, **settings, decoding_direction="l2r"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoding_direction": "up"}, "decoding_direction='up' must be one of l2r, r2l, both"),
        ({"do_sample": True, "num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"decoding_direction": "l2r", "joint_rescoring": True}, "joint_rescoring needs decoding_direction='both'"),
        ({"decoder_input_ids": torch.tensor([[2, 5]] * 4)}, "left end"),
        ({"decoder_input_ids": torch.tensor([[3, 5]] * 4), "decoding_direction": "r2l"}, "left end"),
        ({"streamer": SilentStreamer()}, "a streamer shows"),
        ({"streamer": SilentStreamer(), "decoding_direction": "r2l"}, "a streamer shows"),
        ({"forced_bos_token_id": 5}, "forced_bos_token_id"),
        ({"prefix_allowed_tokens_fn": lambda b, s: [4], "num_beams": 2}, "prefix_allowed_tokens_fn"),
        ({"cache_implementation": "static"}, "recurrent"),
        ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens"),
        ({"stop_strings": ["x"], "decoding_direction": "r2l"}, "stop_strings"),
        ({"watermarking_config": WatermarkingConfig()}, "watermarking_config"),
        ({"guidance_scale": 2.0, "decoding_direction": "l2r"}, "guidance_scale"),
        ({"decoder_start_token_id": 7}, "decoder_start_token_id=7: this model's titles have its own"),
        ({"decoder_start_token_id": [2, 7], "decoding_direction": "l2r"}, "decoder_start_token_id=.*its own"),
        ({"pad_token_id": 5, "decoding_direction": "l2r", "num_beams": 2}, "pad_token_id=5: this model's titles have"),
        ({"prompt_lookup_num_tokens": 2}, "candidates can be tried in one direction only"),
        ({"assistant_model": "set below"}, "an assistant_model writes from the left"),
        ({"assistant_model": "set below", "decoding_direction": "r2l"}, "an assistant_model writes from the left"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_done_is_refused(settings, message):
    if "assistant_model" in settings:
        settings = {**settings, "assistant_model": tiny_model()}
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(random_pairs()[0], **{"max_new_tokens": 4, **settings})


def test_a_model_refuses_what_it_was_not_trained_for():
    input_ids, _ = random_pairs()
    with pytest.raises(ValueError, match="writes 'l2r' only"):
        tiny_model(decoder_directions="l2r").generate(input_ids, decoding_direction="both")
    with pytest.raises(ValueError, match="train with twin_dropout=0.5"):
        tiny_model(twin_dropout=0.0).generate(input_ids, joint_rescoring=True)


@pytest.mark.parametrize("direction", ["l2r", "r2l"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_transition_scores_know_their_direction(direction, num_beams):
    model, (input_ids, _) = tiny_model(), random_pairs()
    output = model.generate(
        input_ids=input_ids, decoding_direction=direction, num_beams=num_beams, max_new_tokens=6,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    beam_indices = output.get("beam_indices")
    found = model.compute_transition_scores(output.sequences, output.scores, beam_indices)
    said = model.compute_transition_scores(output.sequences, output.scores, beam_indices, decoding_direction=direction)
    assert torch.equal(found, said)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 0}, {"num_beams": -1}, {"num_return_sequences": 0}, {"joint_rescoring": None},
        {"vocabulary_shortlist": 2.5}, {"vocabulary_shortlist": True},
        {"eos_token_id": 5}, {"eos_token_id": 5, "decoding_direction": "r2l"},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=name):
        tiny_model().generate(input_ids=random_pairs()[0], max_new_tokens=4, **settings)


def test_a_config_serves_every_call():
    """Nothing of one call stays on a config that the next one is given."""
    model, (input_ids, _) = tiny_model(), random_pairs()
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.max_length = 7
    before = set(vars(config))
    first = model.generate(input_ids=input_ids, generation_config=config)
    assert torch.equal(model.generate(input_ids=input_ids, generation_config=config), first)
    assert set(vars(config)) == before


def test_a_length_asked_for_takes_the_place_of_the_checkpoints(monkeypatch):
    model, (input_ids, _) = tiny_model(), random_pairs()
    model.generation_config.max_length = 9
    said = []
    monkeypatch.setattr(generation_utils.logger, "warning", said.append)
    for settings, length in (({}, 9), ({"max_length": 5}, 5), ({"max_new_tokens": 4}, 5)):
        output = model.generate(input_ids=input_ids, min_length=length, **settings)
        assert output.shape[1] == length
    assert said == []
    model.generate(input_ids=input_ids, max_length=5, max_new_tokens=4)
    assert len(said) == 1 and "max_new_tokens" in said[0]


def test_stop_strings_end_a_title_whatever_the_tokenizer():
    tokenizer = build_bpe_tokenizer(["the red cat runs", "the cat the cat red runs runs"] * 5, min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    batch = tokenizer(["the red cat runs"], return_tensors="pt")
    settings = {"decoding_direction": "l2r", "max_new_tokens": 12}
    for num_beams in (1, 3):
        plain = model.generate(**batch, **settings, num_beams=num_beams)
        text = tokenizer.decode(plain[0], skip_special_tokens=True)
        stop = text[-3:-1]
        found = model.generate(**batch, **settings, num_beams=num_beams, stop_strings=stop, tokenizer=tokenizer)
        written = tokenizer.decode(found[0], skip_special_tokens=True)
        assert stop in written
        if num_beams == 1:
            assert text.startswith(written) and stop not in tokenizer.decode(found[0][:-1], skip_special_tokens=True)
    with pytest.raises(ValueError, match="tokenizer"):
        model.generate(**batch, **settings, stop_strings=["x"])


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("variant", [{}, {"use_copy": True}], ids=str)
def test_encoder_outputs_of_transformers_own_kind_are_taken(as_tuple, variant):
    model, (input_ids, labels) = tiny_model(**variant), random_pairs()
    mask = (input_ids != PAD).long()
    states = model.get_encoder()(input_ids, mask).last_hidden_state
    given = (states,) if as_tuple else BaseModelOutput(last_hidden_state=states)
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    assert torch.equal(model(**batch, encoder_outputs=given).loss, model(**batch).loss)
    plain = model.generate(input_ids, attention_mask=mask, max_new_tokens=6)
    given = BaseModelOutput(last_hidden_state=states)
    found = model.generate(input_ids, attention_mask=mask, encoder_outputs=given, max_new_tokens=6)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", ID_SETTINGS)
@pytest.mark.parametrize("value", ["3", [3, "a"], 3.0, True, 24, -1], ids=str)
@pytest.mark.parametrize("place", ["argument", "config"])
def test_a_tokens_id_that_is_none_is_refused(name, value, place):
    model = tiny_model()
    settings = {"max_new_tokens": 3, "decoding_direction": "l2r"}
    if place == "argument":
        settings[name] = value
    else:
        setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"{name}(=.* must be a token's id| holds the id .* outside the vocabulary)"):
        model.generate(torch.tensor([[5, 6]]), **settings)
