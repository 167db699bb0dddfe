import pytest
from transformers import AutoTokenizer

from bidir_seq2seq.tokenization import (
    SPECIAL_TOKENS,
    build_bpe_tokenizer,
    build_char_tokenizer,
    build_word_tokenizer,
)

CHINESE = ["我国今天发布 2023 年数据", "今天，我国\n发布新规！", "数据显示"]
ENGLISH = ["A small model writes titles.", "Small models write small titles (and headlines)!"] * 3


def test_characters_survive_a_round_trip_and_a_reload(tmp_path):
    tokenizer = build_char_tokenizer(CHINESE, min_frequency=1)
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[START]", "[END]"]) == [0, 1, 2, 3]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in CHINESE:
        ids = loaded(text).input_ids
        assert len(ids) == len(text) + 1 and ids[-1] == 3
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded(text_target="我国").input_ids == loaded("我国").input_ids
    # No custom code travels with it.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_rare_characters_become_unknown():
    tokenizer = build_char_tokenizer(CHINESE, min_frequency=2)
    assert tokenizer("我新").input_ids[1] == tokenizer.unk_token_id
    assert tokenizer("我新").input_ids[0] > 3
    assert len(build_char_tokenizer(CHINESE, min_frequency=1, vocab_size=8)) == 8


def test_bpe_round_trip_and_reload(tmp_path):
    tokenizer = build_bpe_tokenizer(iter(ENGLISH), vocab_size=80)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) <= 80
    for text in ENGLISH:
        ids = loaded(text).input_ids
        assert ids[-1] == 3
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert len(loaded("titles").input_ids) < len("titles")


def test_lowercase_is_the_tokenizers_own():
    tokenizer = build_bpe_tokenizer(ENGLISH, vocab_size=80, lowercase=True)
    assert tokenizer("SMALL Model").input_ids == tokenizer("small model").input_ids


def test_a_literal_special_token_in_a_text_is_text():
    tokenizer = build_char_tokenizer([*CHINESE, "[END]"], min_frequency=1)
    assert len(tokenizer("a[END]", split_special_tokens=True).input_ids) == 7


@pytest.mark.parametrize("build", [build_bpe_tokenizer, build_word_tokenizer])
@pytest.mark.parametrize("lowercase", [False, True])
def test_no_word_and_no_piece_is_a_special_token(build, lowercase):
    texts = ["see ([END]) now", "[END] fox -[PAD]- [UNK] [START]", "[END] [END]x"] * 20
    tokenizer = build(texts, min_frequency=1, lowercase=lowercase)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values())) == [0, 1, 2, 3]
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    for text in texts[:3]:
        ids = tokenizer(text, split_special_tokens=True).input_ids
        assert ids[-1] == 3 and not {*ids[:-1]} & {0, 1, 2, 3}
        written = tokenizer.decode(ids, skip_special_tokens=True)
        wanted = text.lower() if lowercase else text
        if build is build_bpe_tokenizer:
            assert written == wanted
        # Between words there is a space.
        assert written.replace(" ", "") == wanted.replace(" ", "")


@pytest.mark.parametrize("build", [build_char_tokenizer, build_bpe_tokenizer])
def test_nothing_to_build_from(build):
    with pytest.raises(ValueError, match="no token found"):
        build([])


def test_a_vocabulary_without_room():
    with pytest.raises(ValueError, match="vocab_size=4 must be above 4"):
        build_bpe_tokenizer(ENGLISH, vocab_size=4)


@pytest.mark.parametrize("lowercase", [False, True])
def test_white_space_of_any_kind_is_one_boundary_to_bpe(lowercase, tmp_path):
    built = build_bpe_tokenizer(["red cat runs\n", "a red\tcat"] * 3, vocab_size=60, lowercase=lowercase)
    built.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("red cat runs").input_ids
    assert tokenizer.unk_token_id not in ids
    for text in ("red cat\nruns", "red\u3000cat  runs", "\tred\u00a0cat\r\n runs \n", "red\u2028cat\u0085runs"):
        assert built(text).input_ids == tokenizer(text).input_ids == ids, repr(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "red cat runs"
    assert tokenizer(" \n\u3000").input_ids == [tokenizer.eos_token_id]
    assert (tokenizer("RED Cat\nruns").input_ids == ids) == lowercase
