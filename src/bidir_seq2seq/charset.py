"""Which encoding the bytes of a text file are in, and when that cannot be told."""

from __future__ import annotations

import codecs
import unicodedata

from .extras import extra

# A mark at the beginning says it; the longer mark of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What spreadsheets and older programs write. Others (of DOS, of old Macintoshes) read nearly all bytes as some letter.
CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "koi8_r",
    "gb18030", "big5", "cp932", "euc_jp", "cp949",
]  # fmt: skip
CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюяёєіїґўјљњћђџѓќѕ"
# The letters beside a to z of languages of one encoding: those of Europe share most of their bytes.
LETTERS = {
    "cp1252": ("äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "àèéìíîòóù", "ãõáâàéêíóôúüç", "åäöéü", "æøåéèôó", "áéëíïóöü",
               "áðéíóúýþæö"),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ"),
    "cp1254": ("âçğıîöşüûi̇",),
    "cp1251": (CYRILLIC,),
    "koi8_r": (CYRILLIC,),
    "cp1253": ("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",),
}  # fmt: skip
LATIN = ("cp1252", "cp1250", "cp1254")
# In their languages no word has letters of a to z beside others.
NOT_LATIN = ("cp1251", "koi8_r", "cp1253")  # fmt: skip
# From fewer bytes beyond ASCII nobody can tell.
MIN_EVIDENCE = 10
# How much more disorder than in the best reading makes another one improbable (charset-normalizer's measure).
MARGIN = 0.1


def marked_encoding(beginning: bytes) -> str | None:
    """The encoding that a file's first bytes name, or `None`."""
    return next((encoding for mark, encoding in MARKS if beginning.startswith(mark)), None)


def guess_encoding(sample: bytes) -> tuple[str | None, dict[str, str]]:
    """Tells the encoding of text that is not UTF-8.

    Args:
        sample: Lines with bytes beyond ASCII.

    Returns:
        The encoding, or `None` if several readings are as likely or the sample is too short; and what the sample reads
        like in the likely ones, best first.
    """
    with extra("train"):
        from charset_normalizer import from_bytes

    matches = list(from_bytes(sample, cp_isolation=CANDIDATES, preemptive_behaviour=False))
    best = min((match.chaos for match in matches), default=0)
    # Where nothing looks like tidy text to it, letters may still tell.
    likely = [name for match in matches if match.chaos <= best + MARGIN for name in _same_reading(match)] or [*LATIN]
    if any(name in LATIN for name in likely):
        # One of them is as tidy as the other: it is the letters that tell.
        likely += LATIN
    names = [name for name in dict.fromkeys(likely) if name in CANDIDATES and _can_be(sample, name)]
    readings = {name: sample.decode(name) for name in names}
    if sum(byte >= 128 for byte in sample) < MIN_EVIDENCE:
        return None, readings
    readings = {name: text for name, text in readings.items() if not _has_controls(text)}
    plausible = [name for name, text in readings.items() if _is_of_one_language(text, name)]
    # Texts of several languages, in letters that all have.
    chosen = sorted(plausible or readings, key=CANDIDATES.index)
    alike = len({readings[name] for name in chosen}) == 1
    return (chosen[0] if alike and (plausible or len(chosen) > 1) else None), readings


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(sign) == "Cc" and sign not in "\t\n\r\f" for sign in text)


def _can_be(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _same_reading(match) -> list[str]:
    names = [match.encoding, *match.could_be_from_charset]
    return sorted(set(names), key=lambda name: CANDIDATES.index(name) if name in CANDIDATES else len(CANDIDATES))


def _is_of_one_language(text: str, encoding: str) -> bool:
    """Whether nearly all letters beyond ASCII belong to one language, and words hold no signs and no other letters."""
    letters = [sign for sign in text.lower() if sign.isalpha() and not sign.isascii()]
    if encoding not in LETTERS:
        # Umlauts here and there in Latin text may read as Chinese, but then there is little of it.
        return len(letters) > 0.1 * sum(sign.isalpha() for sign in text)
    known = max(sum(sign in alphabet for sign in letters) for alphabet in LETTERS[encoding])
    odd = 0
    for before, sign, after in zip(f" {text}", text, f"{text[1:]} "):
        if sign.isascii():
            continue
        latin = [other.isascii() and other.isalpha() for other in (before, after)]
        foreign = encoding in NOT_LATIN and any(latin)
        odd += foreign if sign.isalpha() else before.isalpha() and after.isalpha() and sign not in "’'´‑–\xad"
    return known >= 0.97 * len(letters) and odd <= 0.02 * len(letters)


def encoding_problem(text: str) -> str | None:
    """Why a text cannot be written to any file, as half of a pair of \\u escapes cannot; `None` if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return str(error)
    return None


__all__ = ["encoding_problem", "guess_encoding", "marked_encoding"]
