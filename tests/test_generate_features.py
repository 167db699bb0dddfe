"""Each feature of transformers' `generate` in each direction: it works, or is refused with a clear error."""

import copy
import math
import threading

import pytest
import torch
from conftest import random_pairs, tiny_model
from transformers import EosTokenCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation import LogitsProcessor, LogitsProcessorList

from bidir_seq2seq.cache_bidir_seq2seq import CACHE_NAME
from bidir_seq2seq.generation_bidir_seq2seq import Beam
from bidir_seq2seq.samples_bidir_seq2seq import DRAWN_TOGETHER

PAD, UNK, START, END = 0, 1, 2, 3
DIRECTIONS = ["l2r", "r2l", "both"]
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
one_direction = pytest.mark.parametrize("direction", ["l2r", "r2l"])


def content(sequence) -> list[int]:
    return [token for token in sequence.tolist() if token not in (PAD, START, END)]


def in_writing_order(sequence, direction: str) -> list[int]:
    return content(sequence) if direction == "l2r" else content(sequence)[::-1]


def forced_token_scores(model, input_ids, sequence, direction: str) -> list[float]:
    """Log-probabilities of a title's tokens and its end under one direction alone, in reading order."""
    ended = END in sequence.tolist()
    words = in_writing_order(sequence, direction)
    start, end = (START, END) if direction == "l2r" else (END, START)
    targets = words + [end] * ended
    outputs = model(
        input_ids=input_ids[None],
        decoder_input_ids=torch.tensor([[start, *words]])[:, : len(targets)],
        decoding_direction=direction,
    )
    scores = outputs.logits[0].log_softmax(-1)[range(len(targets)), targets].tolist()
    return scores if direction == "l2r" else scores[: len(words)][::-1] + scores[len(words) :]


# Sampling


@every_direction
@pytest.mark.parametrize("num_beams", [1, 3])
def test_sampling_is_reproducible_varied_and_well_formed(direction, num_beams):
    model = tiny_model(spread=0.3)
    input_ids, _ = random_pairs()
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(
            model.generate(
                input_ids,
                do_sample=True,
                num_beams=num_beams,
                num_return_sequences=num_beams if num_beams > 1 else 5,
                decoding_direction=direction,
                max_new_tokens=9,
            )
        )
    assert torch.equal(*runs)
    assert runs[0].shape[0] == 4 * (num_beams if num_beams > 1 else 5)
    assert len({tuple(row.tolist()) for row in runs[0]}) > 4
    for row in runs[0].tolist():
        body = row[1 : row.index(END)] if END in row else [token for token in row[1:] if token != PAD]
        assert row[0] == START and min(body, default=9) > END
    torch.manual_seed(4)
    other = model.generate(
        input_ids, do_sample=True, num_beams=num_beams, decoding_direction=direction, max_new_tokens=9
    )
    assert not torch.equal(other[:, :4], runs[0][:: runs[0].shape[0] // 4][:, :4])


def test_beam_sampling_both_near_temperature_zero_is_the_search():
    model = tiny_model()
    input_ids, _ = random_pairs()
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 7}
    sampled = model.generate(input_ids, **settings, do_sample=True, temperature=1e-5)
    assert torch.equal(sampled, model.generate(input_ids, **settings))


def test_sampling_both_among_one_token_is_greedy():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=6)
    settings = {"max_new_tokens": 7, "return_dict_in_generate": True}
    sampled = model.generate(input_ids, **settings, do_sample=True, top_k=1)
    greedy = model.generate(input_ids, **settings, early_stopping=True)
    assert torch.equal(sampled.sequences, greedy.sequences)
    assert sampled.directions == greedy.directions


def sampling_beam(batch_size: int, num_beams: int) -> Beam:
    criteria = StoppingCriteriaList([EosTokenCriteria(END)])
    return Beam(torch.full((batch_size,), START), num_beams, [criteria], max_length=9, pad_id=PAD, do_sample=True)


def test_one_sampled_hypothesis_follows_the_probabilities():
    beam = sampling_beam(20_000, num_beams=1)
    probs = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.5, 0.4])
    beam.advance(*beam.candidates(probs.log().expand(20_000, 1, -1)))
    ended = beam.finished_scores[:, 0] > -math.inf
    # Five standard deviations of a share near 0.1 or 0.5 among 20,000.
    assert abs(float(ended.float().mean()) - 0.1) < 0.011
    assert torch.equal(ended, ~beam.open[:, 0])
    # After an end another token goes on, for the twin to read.
    assert beam.alive.all() and set(beam.last_ids.flatten().tolist()) == {4, 5}
    first = beam.last_ids[~ended, 0]
    assert abs(float((first == 4).float().mean()) - 0.5 / 0.9) < 0.018
    torch.testing.assert_close(beam.scores[~ended, 0], probs.log()[first])


def test_a_sampled_beam_draws_without_replacement():
    beam = sampling_beam(20_000, num_beams=2)
    probs = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.6, 0.3, 0.1])
    # Two of the three are kept of the four drawn (one of them impossible): the best two, whatever was drawn first.
    beam.advance(*beam.candidates(probs.log().expand(20_000, 2, -1)))
    assert beam.last_ids.unique(dim=0).tolist() == [[4, 5]]
    wide = torch.cat([probs, torch.full((50,), 1e-3)])
    beam = sampling_beam(20_000, num_beams=2)
    beam.advance(*beam.candidates(wide.log().expand(20_000, 2, -1)))
    assert (beam.last_ids[:, 0] != beam.last_ids[:, 1]).all()
    assert len(beam.last_ids.unique()) > 20


@every_direction
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 2},
        {"top_p": 0.5},
        {"min_p": 0.3},
        {"typical_p": 0.5},
        {"epsilon_cutoff": 0.1},
        {"eta_cutoff": 0.1},
        {"temperature": 0.3},
        {"renormalize_logits": True, "top_k": 3},
        {"remove_invalid_values": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_samplers_choose_among_what_can_be_written(direction, settings, num_beams):
    model = tiny_model()
    with torch.no_grad():
        # Were these not ruled out first, a sampler would keep hardly anything else.
        model.lm_head.bias[[PAD, UNK]] += 20
    input_ids, _ = random_pairs()
    settings = {**settings, "decoding_direction": direction, "num_beams": num_beams, "max_new_tokens": 6}
    written = model.generate(input_ids, do_sample=True, min_new_tokens=3, **settings)
    for row in written:
        assert len(content(row)) >= 3 and UNK not in row.tolist()


# Processors


@every_direction
def test_no_ngram_of_the_source_is_written(direction):
    model = tiny_model(spread=0.3)
    with torch.no_grad():
        model.prior.log_scale.fill_(math.log(12))
    input_ids, _ = random_pairs(batch_size=6, source_length=12)
    settings = {"decoding_direction": direction, "num_beams": 3, "min_new_tokens": 7, "max_new_tokens": 8}

    def shared(sequences):
        found = 0
        for row, source in zip(sequences, input_ids.tolist()):
            words = content(row)
            found += len(set(zip(words, words[1:])) & set(zip(source, source[1:])))
        return found

    assert shared(model.generate(input_ids, **settings)) > 0
    assert shared(model.generate(input_ids, **settings, encoder_no_repeat_ngram_size=2)) == 0


@every_direction
def test_biased_sequences_are_read_from_the_left(direction):
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=6)
    settings = {"decoding_direction": direction, "num_beams": 2, "max_new_tokens": 7, "min_new_tokens": 7}
    bias = [[[5, 6], 90.0], [[6, 5], -90.0], [[5], 9.0], [[6], 9.0]]
    biased = model.generate(input_ids, **settings, sequence_bias=bias)
    pairs = [pair for row in biased for pair in zip(content(row), content(row)[1:])]
    assert (5, 6) in pairs and (6, 5) not in pairs


@every_direction
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"forced_eos_token_id": END},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"suppress_tokens": list(range(4, 14))},
        {"encoder_repetition_penalty": 0.2},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_other_processors_work(direction, num_beams, settings):
    model = tiny_model(spread=0.3)
    input_ids, _ = random_pairs(batch_size=6)
    common = {"decoding_direction": direction, "num_beams": num_beams, "max_length": 9, "min_length": 3}
    plain = model.generate(input_ids, **common)
    written = model.generate(input_ids, **common, **settings)
    assert written.shape != plain.shape or not torch.equal(written, plain)
    if "forced_eos_token_id" in settings:
        assert all(END in row.tolist() for row in written)
    if "exponential_decay_length_penalty" in settings:
        assert sum(map(len, map(content, written))) < sum(map(len, map(content, plain)))
    if "suppress_tokens" in settings:
        assert not set(settings["suppress_tokens"]) & set(written.flatten().tolist())


class CountsItsCalls(LogitsProcessor):
    """Allows nothing but the token of its n-th call, and so goes wrong when another direction calls it too."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        assert input_ids.shape[1] == self.calls + 1
        self.calls += 1
        mask = torch.full_like(scores, -math.inf)
        mask[:, 4 + self.calls] = 0
        return scores + mask


@every_direction
def test_a_processor_with_a_memory_has_one_for_each_direction(direction):
    output = tiny_model().generate(
        random_pairs()[0],
        decoding_direction=direction,
        num_beams=2,
        max_new_tokens=4,
        logits_processor=LogitsProcessorList([CountsItsCalls()]),
        return_dict_in_generate=True,
    )
    for index, row in enumerate(output.sequences):
        wrote = output.directions[index] if direction == "both" else direction
        assert content(row) == ([5, 6, 7, 8] if wrote == "l2r" else [8, 7, 6, 5])


# Criteria and limits


class StopsAfter(StoppingCriteria):
    """Ends a row once its third token is written."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 4, device=input_ids.device)


@every_direction
@pytest.mark.parametrize("num_beams", [1, 3])
def test_stopping_criteria_end_titles(direction, num_beams):
    settings = {"decoding_direction": direction, "num_beams": num_beams, "min_new_tokens": 9, "max_new_tokens": 9}
    stopped = tiny_model().generate(
        random_pairs()[0], **settings, stopping_criteria=StoppingCriteriaList([StopsAfter()])
    )
    assert [len(content(row)) for row in stopped] == [3] * 4
    at_once = tiny_model().generate(random_pairs()[0], **settings, max_time=0.0)
    assert [len(content(row)) for row in at_once] == [1] * 4


class StopsNever(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@every_direction
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_a_criterion_that_is_never_met_changes_nothing(direction, num_beams, early_stopping):
    model, input_ids = tiny_model(), random_pairs()[0]
    settings = {"decoding_direction": direction, "num_beams": num_beams, "max_new_tokens": 8}
    settings |= {"early_stopping": early_stopping if num_beams > 1 else False, "return_dict_in_generate": True}
    plain = model.generate(input_ids, **settings)
    asked = model.generate(input_ids, **settings, stopping_criteria=StoppingCriteriaList([StopsNever()]))
    assert torch.equal(asked.sequences, plain.sequences)
    if num_beams > 1:
        assert torch.equal(asked.sequences_scores, plain.sequences_scores)


@every_direction
def test_other_processes_are_waited_for(direction, monkeypatch):
    model = tiny_model()
    input_ids, _ = random_pairs()
    settings = {"decoding_direction": direction, "num_beams": 2, "max_length": 5, "min_length": 5}
    alone = model.generate(input_ids, **settings)
    steps = []

    def another_process_takes_nine_steps(this_peer_finished, synced_gpus, device):
        assert synced_gpus
        steps.append(bool(this_peer_finished))
        return len(steps) <= 9

    monkeypatch.setattr(model, "_has_unfinished_sequences", another_process_takes_nine_steps)
    forwards = []
    model.model.encoder.embed_tokens.register_forward_hook(lambda *_: forwards.append(1))
    assert torch.equal(model.generate(input_ids, **settings, synced_gpus=True), alone)
    assert steps == [False] * 4 + [True] * 6
    # The source once, then every step, needed here or not: the other process waits for each.
    assert len(forwards) == 1 + 9


# What a caller can ask to see


@one_direction
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("use_copy", [False, True])
def test_transition_scores_are_the_forced_scores_in_reading_order(direction, num_beams, use_copy):
    model = tiny_model(use_copy=use_copy)
    input_ids, _ = random_pairs(batch_size=5)
    output = model.generate(
        input_ids,
        decoding_direction=direction,
        num_beams=num_beams,
        max_new_tokens=7,
        return_dict_in_generate=True,
        output_scores=True,
    )
    token_scores = model.compute_transition_scores(
        output.sequences,
        output.scores,
        output.get("beam_indices"),
        normalize_logits=num_beams == 1,
        decoding_direction=direction,
    )
    assert token_scores.shape == output.sequences[:, 1:].shape
    for row, source, scores in zip(output.sequences, input_ids, token_scores):
        expected = forced_token_scores(model, source, row, direction)
        if num_beams == 1:
            # Normalised among what could be written.
            assert len(expected) == int((scores != 0).sum())
            assert all(ours >= forced - 1e-5 for ours, forced in zip(scores.tolist(), expected))
        else:
            torch.testing.assert_close(scores[: len(expected)], torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert (scores[len(expected) :] == 0).all()


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("joint_rescoring", [True, False])
@pytest.mark.parametrize("use_copy", [False, True])
def test_a_bidirectional_output_tells_how_each_token_was_chosen(twin, joint_rescoring, use_copy):
    model = tiny_model(use_copy=use_copy)
    if not twin:
        with torch.no_grad():
            model.model.decoder.twin_attention.value.weight.zero_()
            model.model.r2l_decoder.twin_attention.value.weight.zero_()
    input_ids, _ = random_pairs(batch_size=5)
    output = model.generate(
        input_ids,
        num_beams=3,
        num_return_sequences=3,
        max_length=8,
        joint_rescoring=joint_rescoring,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    steps = len(output.l2r_scores)
    assert len(output.r2l_scores) == len(output.l2r_logits) == len(output.r2l_logits) == steps
    assert output.l2r_scores[0].shape == output.r2l_logits[0].shape == (15, 24)
    assert output.token_scores.shape == output.beam_indices.shape == output.sequences[:, 1:].shape
    assert output.source_attentions.shape == (15, 2, output.sequences.shape[1] - 1, input_ids.shape[1])
    assert len(output.encoder_hidden_states) == model.config.encoder_layers + 1
    assert set(output.directions) <= {"l2r", "r2l"} and "r2l" in output.directions
    for index, (row, direction) in enumerate(zip(output.sequences, output.directions)):
        words, ended = in_writing_order(row, direction), END in row.tolist()
        targets = words + [END if direction == "l2r" else START] * ended
        per_step = output.l2r_scores if direction == "l2r" else output.r2l_scores
        rows = output.beam_indices[index]
        chosen = [float(per_step[step][rows[step], token]) for step, token in enumerate(targets)]
        reading = chosen if direction == "l2r" else chosen[: len(words)][::-1] + chosen[len(words) :]
        torch.testing.assert_close(output.token_scores[index, : len(targets)], torch.tensor(reading))
        assert (output.token_scores[index, len(targets) :] == 0).all()
        assert (rows[len(targets) :] == -1).all() and (rows[: len(targets)] // 3 == index // 3).all()
        if not joint_rescoring:
            total = output.token_scores[index].sum() / len(targets)
            torch.testing.assert_close(total, output.sequences_scores[index])
        if not twin:
            source = input_ids[index // 3]
            expected = forced_token_scores(model, source, row, direction)
            torch.testing.assert_close(torch.tensor(reading), torch.tensor(expected), rtol=1e-4, atol=1e-5)
            forced = model(
                input_ids=source[None],
                decoder_input_ids=torch.tensor([[START if direction == "l2r" else END, *words]]),
                decoding_direction=direction,
                output_attentions=True,
            ).cross_attentions[0][0]
            read = output.source_attentions[index, :, : len(targets)]
            if direction == "r2l":
                read = torch.cat([read[:, : len(words)].flip(1), read[:, len(words) :]], dim=1)
            torch.testing.assert_close(read, forced[:, : len(targets)])
        weights = output.source_attentions[index].sum(-1)
        torch.testing.assert_close(weights[:, : len(targets)], torch.ones(2, len(targets)))
        assert (weights[:, len(targets) :] == 0).all()
        if joint_rescoring:
            labels = row[1:][row[1:] != PAD][None]
            encoded = model.get_encoder()(input_ids[index // 3][None])
            alone = model.sequence_log_probs(encoded, labels)
            torch.testing.assert_close(output.l2r_log_probs[index], alone["l2r"][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(output.r2l_log_probs[index], alone["r2l"][0], rtol=1e-4, atol=1e-5)


def test_what_was_not_asked_for_is_not_kept():
    output = tiny_model().generate(random_pairs()[0], num_beams=2, max_length=5, return_dict_in_generate=True)
    given = {name for name, value in output.items() if value is not None}
    assert given == {"sequences", "sequences_scores", "directions"}
    with pytest.raises(ValueError, match="token_scores"):
        tiny_model().compute_transition_scores(output.sequences, output.scores)


@one_direction
def test_per_step_outputs_of_one_direction(direction):
    output = tiny_model().generate(
        random_pairs()[0],
        decoding_direction=direction,
        num_beams=2,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    steps = len(output.scores)
    assert len(output.logits) == len(output.cross_attentions) == len(output.decoder_hidden_states) == steps
    assert output.cross_attentions[1][0].shape == (8, 2, 1, 9)
    assert output.decoder_hidden_states[1][-1].shape == (8, 1, 12)


# Candidates tried in one go


@one_direction
@pytest.mark.parametrize("variant", [{}, {"rnn_type": "gru"}, {"use_copy": True}], ids=str)
def test_prompt_lookup_writes_what_greedy_search_writes(direction, variant):
    model = tiny_model(spread=0.9, **variant)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    matched = 0
    for seed in range(6):
        torch.manual_seed(seed)
        input_ids, _ = random_pairs(batch_size=1)
        settings = {"decoding_direction": direction, "min_new_tokens": 20, "max_new_tokens": 20}
        greedy = model.generate(input_ids, **settings)
        forwards = []
        hook = model.register_forward_hook(lambda *_, seen=forwards: seen.append(1))
        assert torch.equal(model.generate(input_ids, **settings, prompt_lookup_num_tokens=4), greedy)
        hook.remove()
        matched += 20 - len(forwards)
    assert matched > 0, "no candidate was ever accepted, so nothing was ever taken back either"


@pytest.mark.parametrize("do_sample", [False, True])
def test_an_assistant_drafts_from_the_left(do_sample):
    model, assistant = tiny_model(), tiny_model(spread=0.5)
    assistant.load_state_dict({name: value + 0.02 for name, value in model.state_dict().items()})
    input_ids, _ = random_pairs(batch_size=1)
    settings = {"decoding_direction": "l2r", "max_new_tokens": 12, "min_new_tokens": 12}
    greedy = model.generate(input_ids, **settings)
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    written = model.generate(input_ids, **settings, assistant_model=assistant, do_sample=do_sample)
    if do_sample:
        assert written.shape == greedy.shape and UNK not in written[0].tolist()
    else:
        assert torch.equal(written, greedy)
        assert len(forwards) < 12


@pytest.mark.parametrize("num_beams", [1])
def test_candidates_are_tried_where_nothing_else_is_asked_for_too(num_beams):
    model, assistant = tiny_model(use_prior=True), tiny_model()
    input_ids, _ = random_pairs(batch_size=1)
    settings = {"decoding_direction": "l2r", "max_new_tokens": 8}
    greedy = model.generate(input_ids, **settings)
    forwards = []
    assistant.register_forward_hook(lambda *_: forwards.append(1))
    assert torch.equal(model.generate(input_ids, **settings, assistant_model=assistant), greedy) and forwards
    for candidates in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="goes with searching alone"):
            model.generate(input_ids, **settings, **candidates, ranking="consensus")
        with pytest.raises(ValueError, match="vocabulary_shortlist is for searching"):
            model.generate(input_ids, **settings, **candidates, vocabulary_shortlist=4)


class StopButton(StoppingCriteria):
    """Ends all titles when it is pressed; it cannot be copied."""

    def __init__(self):
        self.pressed = threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full(input_ids.shape[:1], self.pressed.is_set(), device=input_ids.device)


class SharedStopButton(StopButton):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("settings", [{}, {"ranking": "joint"}, {"decoding_direction": "l2r"}], ids=str)
def test_what_cannot_be_copied_goes_with_a_single_search(settings):
    model = tiny_model()
    input_ids, _ = random_pairs()
    settings = {"num_beams": 3, "max_new_tokens": 5, **settings}
    written = model.generate(input_ids, **settings, stopping_criteria=[StopButton()])
    assert torch.equal(written, model.generate(input_ids, **settings))
    settings["ranking"] = "consensus"
    with pytest.raises(ValueError, match="cannot be copied .*use a single search, or give it a __deepcopy__"):
        model.generate(input_ids, **settings, stopping_criteria=[StopButton()])
    written = model.generate(input_ids, **settings, stopping_criteria=[SharedStopButton()])
    assert torch.equal(written, model.generate(input_ids, **settings))


class FourthCall(StoppingCriteria):
    """Ends all titles when it has been asked so often."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        return torch.full(input_ids.shape[:1], self.calls >= 4, device=input_ids.device)


@pytest.mark.parametrize("settings", [{"decoding_direction": "l2r"}, {}, {"proposals": "l2r+r2l"}], ids=str)
def test_a_criterion_remembers_what_one_search_has_shown_it(settings):
    model, (input_ids, _) = tiny_model(), random_pairs()
    settings = {"num_beams": 2, "min_new_tokens": 8, "max_new_tokens": 8, **settings}
    assert model.generate(input_ids, **settings).shape[1] == 9
    assert model.generate(input_ids, **settings, stopping_criteria=[FourthCall()]).shape[1] == 5


def test_a_criterion_sees_all_documents_that_titles_are_drawn_of():
    model, (input_ids, _) = tiny_model(), random_pairs(batch_size=DRAWN_TOGETHER + 3, source_length=30)
    settings = {"decoding_direction": "l2r", "proposals": "drawn", "ranking": "consensus", "consensus_samples": 3}
    settings |= {"min_new_tokens": 8, "max_new_tokens": 8, "stopping_criteria": [FourthCall()]}
    written = model.generate(input_ids, **settings)
    assert (written != PAD).sum(1).tolist() == [5] * len(input_ids)


# Ways in


@one_direction
@pytest.mark.parametrize("num_beams", [1, 2])
def test_embeddings_in_place_of_ids(direction, num_beams):
    model = tiny_model(use_prior=False)
    input_ids, _ = random_pairs()
    mask = (input_ids != PAD).long()
    settings = {"decoding_direction": direction, "num_beams": num_beams, "max_new_tokens": 6}
    embeds = model.get_input_embeddings()(input_ids)
    written = model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
    assert torch.equal(written, model.generate(input_ids, **settings))


@every_direction
@pytest.mark.parametrize("name", ["use_twin", "r2l_decoder_input_ids", "decoder_inputs_embeds"])
def test_what_a_search_makes_itself_is_not_taken_and_left(direction, name):
    model, (input_ids, _) = tiny_model(), random_pairs()
    for given in (False, torch.ones(4, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=f"{name} is of no effect in generate: leave it out"):
            model.generate(input_ids, decoding_direction=direction, **{name: given})
    expected = model.generate(input_ids, decoding_direction=direction)
    assert torch.equal(model.generate(input_ids, decoding_direction=direction, **{name: None}), expected)


@every_direction
@pytest.mark.filterwarnings("ignore:.*continuous batching")
def test_batches_that_never_end_are_refused(direction):
    model, (input_ids, _) = tiny_model(), random_pairs()
    with pytest.raises(ValueError, match="cache_implementation='paged': this model keeps a recurrent state"):
        model.generate(input_ids, decoding_direction=direction, cache_implementation="paged")
    with pytest.raises(ValueError, match="continuous batching .* use generate"):
        model.generate_batch(input_ids.tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding_direction": "l2r"},
        {"decoding_direction": "r2l"},
        {"decoding_direction": "l2r", "num_beams": 3},
        {"decoding_direction": "r2l", "num_beams": 3, "use_cache": False},
        {"num_beams": 3},
        {"ranking": "consensus", "consensus_samples": 4},
    ],
    ids=str,
)
def test_words_outside_the_vocabulary_are_words_of_the_source_to_processors(settings):
    model = tiny_model(use_copy=True)
    input_ids, _ = random_pairs(source_length=12)
    # Two of three words are unknown, in turn: 24, 25, 24 and so on.
    places = (torch.arange(12) % 3 < 2) & (input_ids != PAD)
    extended = torch.where(places, 24 + torch.arange(12) % 2, input_ids)
    input_ids = input_ids.masked_fill(places, UNK)
    model.copy_attention["l2r"].share.bias.data += 5
    model.copy_attention["r2l"].share.bias.data += 5
    settings = {"extended_input_ids": extended, "max_new_tokens": 6, **settings}
    free = model.generate(input_ids, **settings)
    assert all(set(extended[row].tolist()) & set(content(title)) for row, title in enumerate(free))
    for size in (1, 2):
        written = model.generate(input_ids, **settings, encoder_no_repeat_ngram_size=size)
        for row, title in enumerate(written):
            source, words = extended[row].tolist(), content(title)
            theirs = {tuple(source[place : place + size]) for place in range(len(source) - size + 1)}
            assert not theirs & {tuple(words[place : place + size]) for place in range(len(words) - size + 1)}


@every_direction
def test_encoder_outputs_in_place_of_ids(direction):
    model = tiny_model()
    input_ids, _ = random_pairs()
    settings = {"decoding_direction": direction, "num_beams": 2, "max_new_tokens": 6}
    encoded = model.get_encoder()(input_ids)
    assert torch.equal(model.generate(encoder_outputs=encoded, **settings), model.generate(input_ids, **settings))


def test_a_beginning_is_continued_from_the_left():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=1)
    settings = {"decoding_direction": "l2r", "min_length": 9, "max_length": 9}
    whole = model.generate(input_ids, **settings)
    assert torch.equal(model.generate(input_ids, decoder_input_ids=whole[:, :4], **settings), whole)
    for num_beams in (1, 3):
        beginning = torch.tensor([[START, 7, 9]])
        forced = model.generate(input_ids, decoder_input_ids=beginning, num_beams=num_beams, **settings)
        assert forced[0, :3].tolist() == [START, 7, 9]


def test_a_past_is_continued():
    model = tiny_model()
    input_ids, _ = random_pairs(batch_size=1)
    settings = {"decoding_direction": "l2r", "return_dict_in_generate": True}
    whole = model.generate(input_ids, **settings, min_new_tokens=8, max_new_tokens=8)
    half = model.generate(input_ids, **settings, min_new_tokens=4, max_new_tokens=4)
    rest = model.generate(
        input_ids,
        decoder_input_ids=half.sequences,
        **settings,
        **{CACHE_NAME: copy.deepcopy(half[CACHE_NAME])},
        min_length=9,
        max_length=9,
    )
    assert torch.equal(rest.sequences, whole.sequences)
    with pytest.raises(ValueError, match=f"{CACHE_NAME} continues one direction"):
        model.generate(input_ids, **{CACHE_NAME: half[CACHE_NAME]}, max_new_tokens=4)


def test_a_decoding_function_of_the_callers_own():
    def always_five(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
        assert model_kwargs["encoder_outputs"].last_hidden_state.shape[0] == 4
        return torch.cat([input_ids, torch.full_like(input_ids, 5)], dim=1)

    written = tiny_model().generate(
        random_pairs()[0], custom_generate=always_five, decoding_direction="l2r", max_new_tokens=1
    )
    assert written.tolist() == [[START, 5]] * 4


# A search of one direction, and of few words


@one_direction
@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"length_penalty": 0.0, "early_stopping": "never"},
        {"length_penalty": 2.0, "early_stopping": True},
        {"length_penalty": 3.0, "early_stopping": "never"},
        {"min_length": 5, "suppress_tokens": [7, 8]},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", [{}, {"use_prior": False, "rnn_type": "gru"}, {"use_copy": True}], ids=str)
def test_a_plain_search_of_one_direction_is_transformers_own(direction, num_beams, settings, variant):
    model = tiny_model(spread=0.4, **variant)
    input_ids, _ = random_pairs(batch_size=7)
    settings = {**settings, "decoding_direction": direction, "num_beams": num_beams, "max_length": 9}
    settings |= {"num_return_sequences": num_beams, "return_dict_in_generate": True}
    theirs = model.generate(input_ids, **settings, output_scores=True)
    own = []
    search = model._search
    model._search = lambda *args, **kwargs: own.append(1) or search(*args, **kwargs)
    ours = model.generate(input_ids, **settings)
    # Greedy search processes logits, which only transformers' own does.
    assert bool(own) == (num_beams > 1 or "repetition_penalty" not in settings)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert ours[CACHE_NAME].get_seq_length() > 0
    if num_beams > 1:
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores)
    settings["return_dict_in_generate"] = False
    assert torch.equal(model.generate(input_ids, **settings), theirs.sequences)


@every_direction
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"min_length": 5}, {"no_repeat_ngram_size": 2}], ids=str)
@pytest.mark.parametrize("use_copy", [False, True])
def test_a_shortlist_of_all_words_changes_nothing(direction, num_beams, settings, use_copy):
    if direction != "both" and num_beams == 1 and "no_repeat_ngram_size" in settings:
        pytest.skip("greedy search with processors is transformers' own, which knows no shortlist")
    model = tiny_model(spread=0.4, use_copy=use_copy)
    input_ids, _ = random_pairs()
    settings = {**settings, "decoding_direction": direction, "num_beams": num_beams, "max_length": 9}
    plain = model.generate(input_ids, **settings)
    assert torch.equal(model.generate(input_ids, **settings, vocabulary_shortlist=24), plain)


@every_direction
@pytest.mark.parametrize(("counted", "use_copy"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("settings", [{}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [4, 5]}], ids=str)
def test_a_shortlist_is_the_model_with_the_other_words_ruled_out(direction, settings, counted, use_copy):
    model = tiny_model(spread=0.4, use_copy=use_copy)
    input_ids, _ = random_pairs(batch_size=5)
    settings = {**settings, "decoding_direction": direction, "num_beams": 3, "max_length": 9}
    settings |= {"return_dict_in_generate": True, "num_return_sequences": 2}
    if counted:
        model.prior.title_counts[[9, 20, 23]] = torch.tensor([7, 5, 2])
        listed = [9, 20, 23]
    else:
        listed = (4 + (model.lm_head.bias + model.prior.shift)[4:].topk(3).indices).tolist()
    short = model.generate(input_ids, **settings, vocabulary_shortlist=3)
    for row in range(5):
        others = set(range(4, 24)) - set(input_ids[row].tolist()) - set(listed)
        assert others
        # A bias of minus infinity takes a word out of the softmax, for this document alone.
        ruled_out = copy.deepcopy(model)
        with torch.no_grad():
            ruled_out.lm_head.bias[list(others)] = -1e9
        expected = ruled_out.generate(input_ids[row : row + 1], **settings)
        for candidate in range(2):
            assert content(short.sequences[2 * row + candidate]) == content(expected.sequences[candidate])
            torch.testing.assert_close(
                short.sequences_scores[2 * row + candidate], expected.sequences_scores[candidate]
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary_shortlist": 0}, "vocabulary_shortlist=0"),
        ({"vocabulary_shortlist": 5, "do_sample": True, "decoding_direction": "l2r"}, "for searching"),
        ({"vocabulary_shortlist": 5, "use_cache": False, "decoding_direction": "r2l"}, "for searching"),
    ],
    ids=str,
)
def test_where_a_shortlist_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(random_pairs()[0], max_new_tokens=4, **settings)
    with pytest.raises(ValueError, match="use_prior=True"):
        tiny_model(use_prior=False).generate(random_pairs()[0], max_new_tokens=4, vocabulary_shortlist=5)
