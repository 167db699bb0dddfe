"""Ranking by weights: what they mean, and how they are chosen."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import random_pairs, tiny_model
from datasets import Dataset
from transformers import BartConfig, BartForConditionalGeneration

from bidir_seq2seq import BidirSeq2SeqForConditionalGeneration, rank_tuning
from bidir_seq2seq.commands.tune import main
from bidir_seq2seq.evaluation import available_systems, predict
from bidir_seq2seq.manifest import differences, write_manifest
from bidir_seq2seq.metrics import BootstrapResult, bleu_counts, bleu_of_counts, pair_scores, pronunciation_scores
from bidir_seq2seq.rank_tuning import (
    PLAIN,
    CandidatePool,
    TunedRanking,
    choose_weights,
    random_weights,
    tune_ranking,
    write_candidates,
)
from bidir_seq2seq.ranking_bidir_seq2seq import FEATURES, RANKING_RULES, features_of
from bidir_seq2seq.titles import write_titles
from bidir_seq2seq.tokenization import build_char_tokenizer

SETTINGS = {"num_beams": 3, "max_length": 7, "proposals": "l2r+r2l+both", "return_dict_in_generate": True}
WEIGHTS = {"own": 0.2, "l2r": 0.1, "r2l": 0.9, "consensus": -0.5, "length": 0.3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a random model, with pairs, some of which cannot be scored."""
    folder = tmp_path_factory.mktemp("tuned")
    letters, chosen = "abcdefghij", random.Random(0)
    texts = ["".join(chosen.choices(letters, k=6)) for _ in range(30)]
    tokenizer = build_char_tokenizer([letters], min_frequency=1)
    torch.manual_seed(0)
    model = tiny_model(vocab_size=len(tokenizer), use_copy=True)
    model.generation_config.update(max_length=8, num_beams=3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_manifest(folder / "model")
    # One has a letter that the vocabulary does not have.
    pairs = {"source": [*texts, "", "abc", "abzcde"], "target": [text[:3] for text in texts] + ["abc", "", "bz"]}
    Dataset.from_dict(pairs).to_json(folder / "validation.jsonl")
    return folder, model, tokenizer, Dataset.from_dict(pairs)


@pytest.mark.parametrize("rule", RANKING_RULES)
def test_a_rule_is_a_choice_of_weights(rule):
    model = tiny_model()
    input_ids, _ = random_pairs()
    weights = {"l2r": 0.5, "r2l": 0.5, "length": 0} if rule == "joint" else {rule: 1}
    expected, found = (model.generate(input_ids, ranking=ranking, **SETTINGS) for ranking in (rule, weights))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)


def test_scores_are_the_weighed_sum_of_what_the_output_tells():
    model = tiny_model()
    input_ids, _ = random_pairs()
    found = model.generate(input_ids, ranking={"l2r": 0.3, "r2l": 0.6, "length": 0.25}, **SETTINGS)
    lengths = (found.sequences != 0).sum(1) - 1
    alone = (0.3 * found.l2r_log_probs + 0.6 * found.r2l_log_probs) / lengths
    torch.testing.assert_close(found.sequences_scores, alone + 0.25 * lengths)


def test_a_ranking_may_be_a_function_of_ones_own():
    model = tiny_model()
    input_ids, _ = random_pairs()
    found = model.generate(input_ids, ranking=lambda candidates: -candidates.lengths.float(), **SETTINGS)
    others = model.generate(input_ids, ranking={"length": -1}, **SETTINGS)
    assert torch.equal(found.sequences, others.sequences)


def test_another_model_may_rank_as_well():
    model, other = tiny_model(), tiny_model(decoder_directions="l2r")
    input_ids, _ = random_pairs()
    read_by_other = other.get_encoder()(input_ids=input_ids)

    def theirs(candidates):
        judged = other.sequence_log_probs(read_by_other, candidates.labels.flatten(0, 1))
        return judged["l2r"].view(candidates.scores.shape)

    found = model.generate(input_ids, ranking=theirs, num_return_sequences=3, **SETTINGS)
    # Each title by itself, as the other model has it.
    labels = found.sequences[:, 1:].masked_fill(found.sequences[:, 1:] == model.config.pad_token_id, -100)
    for row, (title, score) in enumerate(zip(labels, found.sequences_scores)):
        document = input_ids[row // 3 : row // 3 + 1]
        alone = other.sequence_log_probs(other.get_encoder()(input_ids=document), title[title != -100][None])["l2r"]
        torch.testing.assert_close(score[None], alone)
    by_document = found.sequences_scores.view(-1, 3)
    assert torch.equal(by_document, by_document.sort(descending=True).values)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ({"l2r": 1, "best": 1}, "'best' must be one of own, l2r, r2l, consensus, length"),
        ({"l2r": float("nan")}, "the weight of 'l2r' must be a number"),
        ({"l2r": "much"}, "the weight of 'l2r' must be a number"),
        ({"l2r": True}, "the weight of 'l2r' must be a number"),
        ({}, "must weigh something"),
        ({"l2r": 0}, "must weigh something"),
    ],
)
def test_wrong_weights_are_named(ranking, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(random_pairs()[0], ranking=ranking, max_length=7)


def test_weights_of_a_direction_alone_need_one_that_has_learned_it():
    model, (input_ids, _) = tiny_model(twin_dropout=0.0), random_pairs()
    with pytest.raises(ValueError, match="twin_dropout=0"):
        model.generate(input_ids, ranking={"l2r": 1})
    ranked = model.generate(input_ids, ranking={"own": 1, "length": 0.1, "l2r": 0}, num_beams=2, max_length=6)
    assert len(ranked) == len(input_ids)


@pytest.mark.parametrize("metric", ["rougeL", "bleu", "wer"])
@pytest.mark.parametrize("directions", ["both", "l2r", "r2l"])
def test_a_pool_knows_what_each_choice_of_weights_would_write(saved, metric, directions):
    _, model, tokenizer, pairs = saved
    settings = {"proposals": "l2r+r2l+both", "num_beams": 3}
    if directions != "both":
        torch.manual_seed(2)
        model = tiny_model(vocab_size=len(tokenizer), use_copy=True, decoder_directions=directions)
        model.generation_config.update(max_length=8, num_beams=3)
        settings["proposals"] = f"{directions}+drawn+spliced"
    pool = write_candidates(model, tokenizer, pairs, metric, batch_size=7, **settings)
    kept = [index for index in range(len(pairs)) if pairs["source"][index] and pairs["target"][index]]
    assert len(pool.scores) == len(kept) == 31
    documents = [pairs["source"][index] for index in kept]
    references = [pairs["target"][index] for index in kept]
    weights = {name: WEIGHTS[name] for name in features_of(directions)}
    titles = write_titles(model, tokenizer, documents, ranking=weights, **settings)
    texts = [candidates[0].text for candidates in titles]
    if metric == "rougeL":
        expected = pair_scores(texts, references)["rougeL"]
    elif metric == "bleu":
        expected = bleu_counts(texts, references)
    else:
        expected = [pronunciation_scores([text], [one])["wer"] for text, one in zip(texts, references)]
    np.testing.assert_allclose(pool.chosen(pool.vector(WEIGHTS)), expected)
    # And what the model would write without being told how.
    as_it_is = [candidates[0].text for candidates in write_titles(model, tokenizer, documents)]
    assert as_it_is != texts
    if metric == "wer":
        own = [pronunciation_scores([text], [one])["wer"] for text, one in zip(as_it_is, references)]
    else:
        own = bleu_counts(as_it_is, references) if metric == "bleu" else pair_scores(as_it_is, references)[metric]
    np.testing.assert_allclose(pool.written, own)


def test_bleu_of_counts_of_all_pairs_is_that_of_a_corpus():
    from sacrebleu.metrics import BLEU

    texts, references = ["The cat sat on the mat today", "a b c d e"], ["the cat sat on a mat", "a b c d x f"]
    expected = BLEU(tokenize="none", force=True, lowercase=True).corpus_score(texts, [references]).score
    assert bleu_of_counts(np.mean(bleu_counts(texts, references), axis=0)) == pytest.approx(expected)


def pool_that_wants_short_titles(pairs: int = 200) -> CandidatePool:
    """Candidates of random likelihood, of which the shorter one is always right."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(pairs, 4, len(FEATURES)))
    lengths = np.array([generator.permutation(np.arange(5, 9)) for _ in range(pairs)])
    features[..., list(FEATURES).index("length")] = lengths
    scores = 100.0 * (lengths == 5)
    return CandidatePool(tuple(FEATURES), features, np.ones((pairs, 4), dtype=bool), scores, scores[:, 0], "rougeL")


def test_what_helps_is_found_and_said_of_other_pairs():
    pool = pool_that_wants_short_titles()
    found = tune_ranking(pool, num_trials=500)
    assert found.weights["length"] < 0
    assert found.before == pytest.approx(pool.written.mean())
    # Weights on a log scale of 0.003 to 0.3 a token, beside likelihoods of about 1: not all of it can be won.
    assert found.tuned > found.before + 10 and found.difference.low > 0 and found.is_better
    errors = CandidatePool(pool.names, pool.features, pool.exists, 100 - pool.scores, 100 - pool.written, "wer")
    fewer = tune_ranking(errors, num_trials=500)
    assert fewer.weights == found.weights and fewer.tuned == pytest.approx(100 - found.tuned) and fewer.is_better


@pytest.mark.parametrize(
    ("pairs", "p_value", "is_better"), [(29, 0.0002, False), (30, 0.0002, True), (30, 0.06, False)]
)
def test_of_few_pairs_nobody_can_tell(pairs, p_value, is_better):
    found = TunedRanking({"l2r": 1.0}, "rougeL", 40.0, 50.0, BootstrapResult(10.0, 5.0, 15.0, p_value), pairs)
    assert found.is_better is is_better


@pytest.mark.parametrize("metric", ["rougeL", "wer"])
def test_candidates_and_what_is_written_are_scored_by_the_same_tokens(metric, monkeypatch):
    asked = []
    scores_of = rank_tuning._scores_of
    monkeypatch.setattr(rank_tuning, "_scores_of", lambda *args: asked.append(args[-1]) or scores_of(*args))
    tokenizer = build_char_tokenizer(["abcdefgh 水火"], min_frequency=1)
    model = tiny_model(vocab_size=len(tokenizer))
    # Taken together these are words; the first by itself, or several times, is one of characters.
    pairs = Dataset.from_dict({"source": ["abcdef", "hgf"], "target": ["水火水火水", "abc def gh abcd"]})
    write_candidates(model, tokenizer, pairs, metric, num_beams=2, max_length=7)
    assert asked == ["word", "word"]


def test_chance_is_not_taken_for_a_gain():
    pool = pool_that_wants_short_titles()
    scores = np.random.default_rng(1).permuted(pool.scores, axis=1)
    # What stands first is as good as any.
    noise = CandidatePool(pool.names, pool.features, pool.exists, scores, scores[:, 0], "rougeL")
    everything = np.arange(len(noise.scores))
    # On the pairs they are chosen on, the best of many weights always look better than the plain ones, which stay.
    generator = np.random.default_rng(0)
    best = max(noise.value(noise.vector(random_weights(generator)), everything) for _ in range(500))
    plain = [noise.value(noise.vector(weights), everything) for weights in PLAIN]
    assert best > max(plain) and noise.value(choose_weights(noise, everything), everything) == max(plain)
    found = tune_ranking(noise)
    assert found.difference.low < 0 < found.difference.high and not found.is_better


def test_what_cannot_be_tuned_is_named(saved):
    _, model, tokenizer, pairs = saved
    with pytest.raises(ValueError, match="metric='rouge' must be one of rougeL, bleu, wer"):
        write_candidates(model, tokenizer, pairs, "rouge")
    with pytest.raises(ValueError, match="1 pairs are too few"):
        write_candidates(model, tokenizer, pairs.select(range(29, 32)))
    with pytest.raises(ValueError, match="num_trials=0"):
        tune_ranking(pool_that_wants_short_titles(), num_trials=0)


def command(folder, *more):
    main([str(folder / "model"), "--validation_file", str(folder / "validation.jsonl"), "--num_trials", "50", *more])


def test_the_command_keeps_weights_that_help(saved, monkeypatch, capsys):
    folder, model, tokenizer, pairs = saved
    stored = (folder / "model" / "generation_config.json").read_bytes()
    command(folder, "--dry_run")
    assert "as the model writes" in capsys.readouterr().out
    assert (folder / "model" / "generation_config.json").read_bytes() == stored
    # What weights were chosen for is kept beside them, whether it was asked for or not.
    with monkeypatch.context() as patch:
        patch.setattr("bidir_seq2seq.rank_tuning.TunedRanking.is_better", True)
        for asked, expected in ([], "l2r+r2l+drawn+spliced"), (["--consensus_samples", "0"], "l2r+r2l"):
            command(folder, *asked)
            assert json.loads((folder / "model" / "generation_config.json").read_text())["proposals"] == expected
            (folder / "model" / "generation_config.json").write_bytes(stored)
            write_manifest(folder / "model")
    # Whatever chance says of a random model: weights that help are kept, and others are not.
    for helps in (False, True):
        monkeypatch.setattr("bidir_seq2seq.rank_tuning.TunedRanking.is_better", helps)
        command(folder, "--proposals", "l2r+r2l+drawn", "--consensus_samples", "5")
        assert ((folder / "model" / "generation_config.json").read_bytes() != stored) == helps
    assert differences(folder / "model") == {}
    kept = json.loads((folder / "model" / "generation_config.json").read_text())
    assert kept["proposals"] == "l2r+r2l+drawn" and kept["consensus_samples"] == 5 and kept["max_length"] == 8
    assert set(kept["ranking"]) <= set(FEATURES)
    again = BidirSeq2SeqForConditionalGeneration.from_pretrained(folder / "model").eval()
    assert "tuned" in available_systems(again) and "tuned" not in available_systems(model)
    found = predict(again, tokenizer, pairs, ["tuned", "both", "joint"], progress=False)
    stored = {"ranking": kept["ranking"], "proposals": "l2r+r2l+drawn", "consensus_samples": 5}
    titles = write_titles(model, tokenizer, pairs["source"], **stored)
    assert found["tuned"] == [candidates[0].text for candidates in titles]
    # What is stored changes no other system.
    expected = predict(model, tokenizer, pairs, ["both", "joint"], progress=False)
    assert {name: found[name] for name in expected} == expected
    assert found["tuned"] != expected["both"]


def test_one_direction_keeps_what_helps_too(saved, tmp_path, monkeypatch):
    folder, _, tokenizer, pairs = saved
    torch.manual_seed(1)
    model = tiny_model(vocab_size=len(tokenizer), decoder_directions="l2r")
    model.generation_config.update(max_length=8, num_beams=3)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "validation.jsonl").write_bytes((folder / "validation.jsonl").read_bytes())
    monkeypatch.setattr("bidir_seq2seq.rank_tuning.TunedRanking.is_better", True)
    monkeypatch.setattr(
        "bidir_seq2seq.rank_tuning.choose_weights",
        lambda pool, *_: pool.vector({"consensus": 1, "l2r": 0.1, "r2l": 3}),
    )
    command(tmp_path, "--consensus_samples", "5")
    again = BidirSeq2SeqForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    kept = again.generation_config
    assert kept.proposals == "l2r+drawn+spliced" and kept.ranking == {"consensus": 1, "l2r": 0.1}
    stored = {"ranking": kept.ranking, "proposals": "l2r+drawn+spliced", "consensus_samples": 5}
    found = predict(again, tokenizer, pairs, ["tuned", "l2r", "consensus"], progress=False)
    titles = write_titles(model, tokenizer, pairs["source"], **stored)
    assert found["tuned"] == [candidates[0].text for candidates in titles]
    # What is stored changes no other system, and neither samples nor what has been asked to write plainly.
    expected = predict(model, tokenizer, pairs, ["l2r"], progress=False)
    expected |= predict(model, tokenizer, pairs, ["consensus"], consensus_samples=5, progress=False)
    assert {name: found[name] for name in expected} == expected and found["tuned"] != expected["l2r"]
    input_ids, _ = random_pairs(vocab_size=len(tokenizer))
    for settings in ({"do_sample": True, "num_beams": 1}, {"ranking": "own"}):
        torch.manual_seed(0)
        plain = model.generate(input_ids, **settings)
        torch.manual_seed(0)
        assert torch.equal(again.generate(input_ids, **settings), plain)


@pytest.mark.parametrize("missing", [["ranking", "proposals"], ["consensus_samples"]])
def test_weights_are_kept_where_an_older_checkpoint_has_no_place_for_them(saved, tmp_path, monkeypatch, missing):
    folder = saved[0]
    shutil.copytree(folder, tmp_path / "older")
    path = tmp_path / "older" / "model" / "generation_config.json"
    stored = {name: value for name, value in json.loads(path.read_text()).items() if name not in missing}
    path.write_text(json.dumps(stored))
    write_manifest(path.parent)
    older = BidirSeq2SeqForConditionalGeneration.from_pretrained(path.parent)
    assert ("tuned" in available_systems(older)) == isinstance(stored.get("ranking"), dict)
    monkeypatch.setattr("bidir_seq2seq.rank_tuning.TunedRanking.is_better", True)
    command(tmp_path / "older", "--proposals", "l2r+r2l+drawn", "--consensus_samples", "4")
    kept = json.loads(path.read_text())
    assert (
        kept["proposals"] == "l2r+r2l+drawn" and kept["consensus_samples"] == 4 and set(kept["ranking"]) <= {*FEATURES}
    )


def test_what_has_no_weights_is_refused(saved, tmp_path):
    _, _, tokenizer, pairs = saved
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), d_model=16, encoder_layers=1))
    with pytest.raises(ValueError, match="only a model of this library ranks by weights, not 'bart'"):
        write_candidates(bart, tokenizer, pairs)
    leaking = tiny_model(vocab_size=len(tokenizer), twin_dropout=0.0)
    with pytest.raises(ValueError, match="have not learned to write alone"):
        write_candidates(leaking, tokenizer, pairs)
    with pytest.raises(ValueError, match="is no folder that the ranking could be kept in"):
        main(["somebody/model", "--validation_file", str(tmp_path / "validation.jsonl")])
