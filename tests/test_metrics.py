import math

import evaluate
import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from bidir_seq2seq.metrics import (
    TitleScore,
    accuracy_by_position,
    bleu_of_counts,
    bootstrap_interval,
    lead_baseline,
    pair_scores,
    paired_bootstrap,
    pronunciation_scores,
    resolved,
    signatures,
    split_tokens,
)

ENGLISH_PREDICTIONS = [
    "on the mat a cat",
    "neural networks learn to translate",
    "a study of titles",
    "no overlap here",
]
ENGLISH_REFERENCES = [
    "the cat sat on the mat",
    "learning to translate with neural networks",
    "a study of very short titles",
    "completely different words",
]


def score(prediction, reference, **kwargs):
    return TitleScore().compute(predictions=[prediction], references=[reference], **kwargs)


def test_chinese_pair_by_hand():
    # The same 6 characters on either side. Common bigrams: 中国, 增长, 经济, of 5. Longest common subsequence: 4 of 6.
    # Head: 中国 of 中国经济; tail: nothing of 经济增长. BLEU precisions: 6/6, 3/5, and, as none of the 4 trigrams
    # and 3 4-grams is common, "exp" smoothed 1/(2*4) and 1/(4*3).
    assert score("中国增长经济", "中国经济增长") == pytest.approx(
        {
            "rouge1": 100.0,
            "rouge2": 60.0,
            "rougeL": 100 * 4 / 6,
            "bleu": 100 * (1 * 3 / 5 * 1 / 8 * 1 / 12) ** (1 / 4),
            "first4": 50.0,
            "last4": 0.0,
        }
    )


def test_english_pair_by_hand():
    # Reference: the cat sat on the mat; prediction: on the mat a cat. Unigrams: on, the, mat, cat, of 6 and 5.
    # Bigrams: on the, the mat, of 5 and 4. Longest common subsequence: on the mat, of 6 and 5. F1 = 2 * common / sum.
    # Head: "the cat sat on" against "on the mat a", nothing; tail from the end: mat, the, on, sat against cat, a, mat,
    # the: nothing. BLEU: precisions 4/5, 2/4, 1/3 (on the mat), 1/(2*2) smoothed, brevity penalty exp(1 - 6/5).
    assert score("On the mat: a cat!", "The cat sat on the mat.") == pytest.approx(
        {
            "rouge1": 100 * 8 / 11,
            "rouge2": 100 * 4 / 9,
            "rougeL": 100 * 6 / 11,
            "bleu": 100 * math.exp(1 - 6 / 5) * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** (1 / 4),
            "first4": 0.0,
            "last4": 0.0,
        }
    )


@pytest.mark.parametrize(
    "text",
    [
        "北京举行新闻发布会",
        "東京タワーのデータ",
        "서울에서 열린 회의",
        "การประชุมครั้งที่",
        "राष्ट्रीय शिक्षा नीति पर चर्चा",
        "A title in plain English",
    ],
)
def test_a_perfect_title_scores_100_in_every_script(text):
    assert score(text, text) == pytest.approx(
        dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu", "first4", "last4"), 100.0)
    )


def test_rouge_equals_rouge_score_on_ascii():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    ours = pair_scores(ENGLISH_PREDICTIONS, ENGLISH_REFERENCES)
    for index, (prediction, reference) in enumerate(zip(ENGLISH_PREDICTIONS, ENGLISH_REFERENCES, strict=True)):
        for name, theirs in scorer.score(reference, prediction).items():
            assert ours[name][index] == pytest.approx(100 * theirs.fmeasure)


def test_bleu_equals_sacrebleu():
    predictions, references = (
        ["发布会今天在北京举行", "经济增长百分之七点五"],
        ["新闻发布会在北京举行", "经济增长百分之七"],
    )
    assert TitleScore().compute(predictions=predictions, references=references)["bleu"] == pytest.approx(
        BLEU(tokenize="zh").corpus_score(predictions, [references]).score
    )
    assert TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES)[
        "bleu"
    ] == pytest.approx(BLEU().corpus_score(ENGLISH_PREDICTIONS, [ENGLISH_REFERENCES]).score)


def test_scores_are_plain_floats():
    scores = list(score("a b", "a c").values()) + pair_scores(["a b"], ["a c"])["rouge1"]
    result = paired_bootstrap([1, 2, 3], [2, 1, 1])
    assert {type(value) for value in [*scores, *vars(result).values()]} == {float}


def test_the_metric_is_the_mean_of_the_pairs():
    pairs = pair_scores(ENGLISH_PREDICTIONS, ENGLISH_REFERENCES)
    assert len(set(pairs["rougeL"])) > 2
    metric = TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES)
    for name, values in pairs.items():
        assert metric[name] == pytest.approx(sum(values) / len(values))


def test_char_tokens_are_all_characters_but_spaces():
    # a a b against a b "!": 2 of 3 and 3; by words nothing is common.
    assert score("a ab", "ab!", tokenization="char")["rouge1"] == pytest.approx(100 * 4 / 6)
    assert score("a a b", "ab!", tokenization="word")["rouge1"] == 0.0


def test_word_tokens_are_words_and_single_unspaced_characters():
    # 新 型 gpt 4 发 布 against 新 gpt 4 发 布: 5 common of 6 and 5.
    assert score("新型GPT-4发布", "新《gpt 4》发布", tokenization="word")["rouge1"] == pytest.approx(100 * 10 / 11)
    assert score("नीति", "नाति", tokenization="word")["rouge1"] == 0.0
    assert score("snake_case", "Snake case", tokenization="word")["rouge1"] == 100.0


def test_auto_tokenization_follows_the_letters_of_the_references():
    # Two letters of four are no majority, three of five are. By words "ab" and "ac" have nothing in common.
    assert score("AB，", "新AC年，")["rouge1"] == 0.0
    assert score("AB，", "新AC年好，")["rouge1"] == pytest.approx(100 * 4 / 9)
    # The prediction has no say: two systems must be measured alike.
    assert score("新年好新年好ab", "ac")["rouge1"] == 0.0


def test_case_is_ignored_but_width_is_not():
    assert score("GDP增长百分之二", "gdp增长百分之二")["rouge1"] == 100.0
    assert score("增长２成", "增长2成")["rouge1"] == pytest.approx(75.0)


def test_edges_are_counted_from_their_own_end_and_averaged_over_tokens():
    # 2 of 4 and 1 of 2 first tokens; 1 of 4 and 0 of 2 last ones. A mean over pairs would give 12.5 for last4.
    scores = TitleScore().compute(predictions=["a b x y c d e", "p"], references=["a b c d z e", "p q"])
    assert scores["first4"] == pytest.approx(100 * 3 / 6)
    assert scores["last4"] == pytest.approx(100 * 1 / 6)


def test_several_references_count_by_the_best():
    references = [["x y z", "the cat sat on the mat", "cat"], ["b a"]]
    predictions = ["on the mat a cat", "a b"]
    scores = pair_scores(predictions, references)
    assert scores["rouge1"] == pytest.approx([100 * 8 / 11, 100.0])
    assert scores["rouge2"] == pytest.approx([100 * 4 / 9, 0.0])
    metric = TitleScore().compute(predictions=predictions, references=references)
    # The first pair has its "cat" in the third reference, at the end; the second pair has nothing in its place.
    assert metric["last4"] == pytest.approx(100 * 1 / 3)
    # Matches up to the 4-grams 6/7, 2/5, 1/3, 0/2; the closest lengths are 6 and 2, of 5 and 2 predicted.
    assert metric["bleu"] == pytest.approx(100 * math.exp(1 - 8 / 7) * (6 / 7 * 2 / 5 * 1 / 3 * 1 / 4) ** (1 / 4))


def test_edges_take_the_reference_with_the_highest_share():
    # Two of four against one of one.
    assert TitleScore().compute(predictions=["a b x"], references=[["a b c d", "a"]])["first4"] == 100.0


def test_one_reference_may_be_a_text_or_a_list():
    listed = [[reference] for reference in ENGLISH_REFERENCES]
    mixed = [listed[0], *ENGLISH_REFERENCES[1:]]
    expected = TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES)
    assert TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=listed) == expected
    assert TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=mixed) == expected


def test_pairs_may_be_added_one_by_one_and_combined():
    expected = TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES)
    metric = TitleScore(keep_in_memory=True)
    metric.add(prediction=ENGLISH_PREDICTIONS[0], reference=ENGLISH_REFERENCES[0])
    metric.add_batch(predictions=ENGLISH_PREDICTIONS[1:], references=ENGLISH_REFERENCES[1:])
    assert metric.compute() == expected
    combined = evaluate.combine([TitleScore()])
    assert combined.compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES) == expected


def test_empty_texts():
    assert set(score("", "经济增长").values()) == {0.0}
    assert set(score("经济增长", "").values()) == {0.0}
    assert set(score(" ", "").values()) == {100.0}
    assert pair_scores(["", "", "a"], ["", "a", "a"])["rouge1"] == [100.0, 0.0, 100.0]
    assert pair_scores(["", "b"], [["a", ""], ["a", ""]])["rouge1"] == [100.0, 0.0]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], ["a"], "2 predictions but 1 references"),
        ([], [], "no predictions"),
        ("a", ["a"], "predictions is the single text 'a'"),
        (["a"], "a", "references is the single text 'a'"),
        ([None], ["a"], r"predictions\[0\] is None"),
        (["a", "b"], ["a", 3], r"references\[1\]\[0\] is 3"),
        (["a"], [[]], r"references\[0\] is an empty list"),
        (["a"], None, "only one"),
    ],
)
def test_invalid_pairs(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        pair_scores(predictions, references)
    metric = TitleScore()
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=["a"], references=["a"])["rouge1"] == 100.0


def test_unknown_tokenization():
    for call in (
        lambda: score("a", "a", tokenization="chars"),
        lambda: pair_scores(["a"], ["a"], "chars"),
        lambda: lead_baseline(["a"], ["a"], "chars"),
    ):
        with pytest.raises(ValueError, match="'chars'; choose one of auto, char, word"):
            call()


def test_an_unknown_tokenization_leaves_no_cache_file(tmp_path):
    with pytest.raises(ValueError, match="'chars'"):
        TitleScore(cache_dir=str(tmp_path)).compute(predictions=["a"], references=["a"], tokenization="chars")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_bootstrap_of_identical_systems():
    scores = list(np.random.default_rng(1).uniform(0, 100, size=50))
    result = paired_bootstrap(scores, scores)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_bootstrap_of_equally_good_systems():
    scores = np.random.default_rng(2).uniform(0, 100, size=(2, 200))
    scores -= scores.mean(axis=1, keepdims=True)
    result = paired_bootstrap(*scores)
    assert result.low < 0 < result.high
    assert result.p_value > 0.9


def test_bootstrap_of_a_better_system():
    generator = np.random.default_rng(3)
    worse = generator.uniform(0, 60, size=300)
    noise = generator.normal(5, 10, size=300)
    result = paired_bootstrap(worse + noise, worse)
    assert result.difference == pytest.approx(noise.mean())
    assert result.p_value == pytest.approx(2 / 10_001)
    # The bootstrap of a mean approaches the normal interval.
    half_width = 1.96 * noise.std() / math.sqrt(300)
    assert (result.low, result.high) == pytest.approx(
        (noise.mean() - half_width, noise.mean() + half_width), abs=0.1 * half_width
    )
    swapped = paired_bootstrap(worse, worse + noise)
    assert (swapped.difference, swapped.low, swapped.high) == pytest.approx(
        (-result.difference, -result.high, -result.low)
    )
    assert swapped.p_value == result.p_value


def test_bootstrap_p_value_by_hand():
    # Differences -1 and 3: resampled means -1, 1, 1, 3 are equally likely, a quarter of them not positive.
    assert paired_bootstrap([0, 3], [1, 0]).p_value == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("pairs", "least"), [(1, 1.0), (2, 0.5), (4, 0.125), (6, 0.03125), (40, 0.0002)])
def test_a_few_pairs_that_all_say_the_same_do_not_say_much(pairs, least):
    assert paired_bootstrap([3.0] * pairs, [1.0] * pairs).p_value == pytest.approx(least, rel=0.01)


def test_what_auto_is_does_not_depend_on_how_often_a_reference_is_there():
    references = [["水火土木金"], ["five words of English here"]]
    assert resolved("auto", references) == resolved("auto", references * 3) == "word"
    assert resolved("auto", [references[0]] * 9 + [references[1]]) == "char"
    assert resolved("char", references) == "char"


def test_bootstrap_is_deterministic_by_seed():
    scores_a, scores_b = np.random.default_rng(4).uniform(0, 100, size=(2, 40))
    assert paired_bootstrap(scores_a, scores_b, seed=7) == paired_bootstrap(scores_a, scores_b, seed=7)
    assert paired_bootstrap(scores_a, scores_b, seed=7) != paired_bootstrap(scores_a, scores_b, seed=8)


def test_bootstrap_fills_every_chunk():
    # 2000 resamples of 1500 pairs take more than one chunk; a part left out would not lie near the difference.
    scores = np.random.default_rng(5).normal(10, 1, size=1500)
    result = paired_bootstrap(scores, np.zeros(1500), num_samples=2000)
    assert 9.8 < result.low < result.difference < result.high < 10.2


def test_bootstrap_errors():
    with pytest.raises(ValueError, match="2 scores_a but 1 scores_b"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no scores"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="num_samples=0"):
        paired_bootstrap([1.0], [1.0], num_samples=0)


def test_lead_baseline_by_characters():
    # Summaries of 4 and 3 tokens (spaces do not count): 3.5 rounds to 4, half to even.
    assert lead_baseline([" 今 天GDP增长", "今天", ""], ["经济 增长", "好消息"]) == ["今 天GD", "今天", ""]


def test_lead_baseline_by_words():
    documents = ['"Don\'t panic", he (Ford) said.', "Short."]
    assert lead_baseline(documents, ["one two three", "Four, five; six!"]) == ["\"Don't panic", "Short"]


def test_lead_baseline_is_tokenized_as_the_summaries():
    assert lead_baseline(["Huawei 发布新机"], ["华为新机"]) == ["Huaw"]


def test_lead_baseline_errors():
    with pytest.raises(ValueError, match="no summaries"):
        lead_baseline(["a"], [])
    with pytest.raises(ValueError, match="documents is the single text"):
        lead_baseline("a b", ["a"])
    with pytest.raises(ValueError, match=r"summaries\[0\] is None"):
        lead_baseline(["a b"], [None])


def test_positions_are_counted_from_both_ends():
    accuracy = accuracy_by_position(["a b x d", "a"], ["a b c d", "b a"], num_positions=3)
    assert accuracy == {"start": [(50, 2), (50, 2), (0, 1)], "end": [(100, 2), (0, 2), (100, 1)]}
    # Of two references the one with more hits.
    best = accuracy_by_position(["a b"], [["x y z", "a b"]])
    assert best["start"] == [(100, 1), (100, 1)]


@pytest.mark.parametrize(("end", "metric"), [("start", "first4"), ("end", "last4")])
def test_the_first_four_positions_together_are_the_edge_accuracy(end, metric):
    found = accuracy_by_position(ENGLISH_PREDICTIONS, ENGLISH_REFERENCES, num_positions=4)[end]
    hits, total = sum(share * count / 100 for share, count in found), sum(count for _, count in found)
    scores = TitleScore().compute(predictions=ENGLISH_PREDICTIONS, references=ENGLISH_REFERENCES)
    assert 100 * hits / total == pytest.approx(scores[metric])


def test_no_position_is_an_error():
    with pytest.raises(ValueError, match="num_positions=0"):
        accuracy_by_position(["a"], ["a"], num_positions=0)


def test_pronunciations_are_compared_with_the_nearest_reference():
    # An exact one; one edit from either reference, of which the longer counts; nothing where one phoneme belongs.
    predictions = ["AH0 B", "K AE1 T S", ""]
    references = [["EY B", "AH0 B"], ["K AE1 T", "K AE1 T S AH0"], ["T"]]
    assert pronunciation_scores(predictions, references) == pytest.approx(
        {"wer": 200 / 3, "per": 100 * 2 / (2 + 5 + 1)}
    )
    # Case and stress are part of a phoneme.
    assert pronunciation_scores(["ah0 b"], ["AH0 B"])["per"] == 100
    assert pronunciation_scores(["kat"], ["kæt"], tokenization="char")["per"] == pytest.approx(100 / 3)
    assert pronunciation_scores([""], [""]) == {"wer": 0, "per": 0}
    assert pronunciation_scores(["a"], [""]) == {"wer": 100, "per": 100}


def test_the_interval_of_a_mean_is_where_resampled_means_lie():
    scores = [0.0, 100.0] * 200
    low, high = bootstrap_interval(scores)
    # The standard error of a share of a half among 400 is 2.5 points.
    assert low == pytest.approx(50 - 1.96 * 2.5, abs=0.5) and high == pytest.approx(50 + 1.96 * 2.5, abs=0.5)
    assert bootstrap_interval([30.0] * 9) == pytest.approx((30, 30))


def test_a_signature_says_what_was_counted():
    assert signatures(["中国"])["tokens"].startswith("character|") and "|tok:word|" in signatures(["a b"])["bleu"]
    numbers = [signatures(references)["rouge"].split("|")[0] for references in ([["a", "b"]], [["a"], ["a", "b"]])]
    assert numbers == ["nrefs:2", "nrefs:var"]


@pytest.mark.parametrize("text", ["", "A cat, sat.", " 中国 GDP！", "<b>&amp;</b>\n"])
def test_pieces_of_a_text_are_the_text(text):
    pieces = split_tokens(text)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(token is None or token == piece.lower() for piece, token in pieces)


def test_bleu_of_counts_is_sacrebleus_and_can_be_compared():
    references = ["a cat sat on the mat today", "the dog ran to the park", "we saw two birds there"]
    systems = [
        ["a cat sat on the mat", "the dog ran in the park", "we saw two birds there"],
        ["a cat sat here", "the dog ran to a park", "we saw birds there now today"],
    ]
    measure, plain = BLEU(effective_order=True), BLEU(smooth_method="none")
    counts = []
    for titles in systems:
        scores = [measure.sentence_score(title, [reference]) for title, reference in zip(titles, references)]
        counts.append([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])
        expected = plain.corpus_score(titles, [references]).score
        assert bleu_of_counts(np.mean(counts[-1], axis=0)) == pytest.approx(expected)
    assert bleu_of_counts(np.zeros(10)) == 0
    figures = [bleu_of_counts(np.mean(rows, axis=0)) for rows in counts]
    test = paired_bootstrap(*counts, num_samples=500, statistic=bleu_of_counts)
    assert test.difference == pytest.approx(figures[0] - figures[1])
    assert test.low <= test.difference <= test.high and test.p_value < 1
    same = paired_bootstrap(counts[0], counts[0], num_samples=50, statistic=bleu_of_counts)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_systems_that_are_as_good_are_exactly_so():
    # Each is ahead in as many pairs by as much: 0.1 and 0.2 have no exact binary form.
    ahead, behind = [0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.4, 0.3]
    draws = np.random.default_rng(0).integers(4, size=(400, 4))
    differences = (np.array(ahead) - np.array(behind))[draws].mean(axis=1)
    tied = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    assert np.count_nonzero(differences == 0) > 0
    assert paired_bootstrap(ahead, behind, num_samples=400).p_value == min(1, 2 * (1 + tied) / 401)
