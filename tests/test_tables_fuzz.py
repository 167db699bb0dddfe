"""Whatever texts are written in whatever format, they come back, in order."""

import csv
import io
import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bidir_seq2seq.data import read_texts
from bidir_seq2seq.tables import open_table

# All of Unicode but halves of signs, with what formats care about more often than chance would have it.
TRAPS = st.sampled_from(
    ['"', '""', ",", ";", "\t", "\n", "\r", "\r\n", "\\", "\ufeff", "\u2028", "\x85", "\x0c", "\ufdd0"]
)
SIGNS = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.one_of(TRAPS, SIGNS, st.text(SIGNS, max_size=4)), max_size=8).map("".join)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])


def as_json_lines(rows, draw) -> str:
    ascii_only = draw(st.booleans())
    return "".join(json.dumps({"source": a, "target": b}, ensure_ascii=ascii_only) + "\n" for a, b in rows)


def as_json(rows, draw) -> str:
    value = [{"source": a, "target": b} for a, b in rows]
    value = draw(st.sampled_from([value, {"data": value}, {"version": 1, "rows": value}]))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 2])))


def as_csv(rows, draw) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(
        stream,
        delimiter=draw(st.sampled_from(",;\t|")),
        quoting=draw(st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerows([("source", "target"), *rows])
    return stream.getvalue()


def as_tsv(rows, draw) -> str:
    return "".join("\t".join(row) + "\n" for row in [("source", "target"), *rows])


WRITERS = {"jsonl": as_json_lines, "json": as_json, "csv": as_csv, "tsv": as_tsv}


def fits(row: tuple[str, str], kind: str) -> bool:
    """Whether a format can hold a row at all."""
    if kind in ("tsv", "lines"):
        return not any(sign in text for text in row for sign in "\n\t") and not any(
            text.endswith("\r") for text in row
        )
    # Python's csv writes a return without quotation marks, after which no reader knows what ends a line.
    return kind != "csv" or not any("\r" in text.replace("\r\n", "") for text in row)


def read(path) -> list[tuple[str, ...]]:
    return [tuple(texts) for _, texts in read_texts(open_table(path), ["source", "target"])]


def comes_back(kind: str, rows, data, folder: Path) -> None:
    rows = [row for row in rows if fits(row, kind)] or [("a", "b")]
    if kind == "parquet":
        parquet.write_table(
            pyarrow.table({"source": [a for a, _ in rows], "target": [b for _, b in rows]}), folder / "a.parquet"
        )
        assert read(str(folder / "a.parquet")) == rows
    elif kind == "lines":
        encoding = data.draw(ENCODINGS)
        for name, texts in zip(("a.en", "a.de"), zip(*rows)):
            # A first line that begins with a mark is taken for a marked file.
            content = "".join(f"{text}\n" for text in texts).lstrip("\ufeff")
            (folder / name).write_bytes(content.encode(encoding))
        rows[0] = tuple(text.lstrip("\ufeff") for text in rows[0])
        assert read([str(folder / "a.en"), str(folder / "a.de")]) == rows
    else:
        content = WRITERS[kind](rows, data.draw)
        (folder / f"a.{kind}").write_bytes(content.encode(data.draw(ENCODINGS)))
        assert read(str(folder / f"a.{kind}")) == rows


KINDS = pytest.mark.parametrize("kind", [*WRITERS, "parquet", "lines"])
RELAXED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@KINDS
@settings(max_examples=60, **RELAXED)
@given(rows=ROWS, data=st.data())
def test_rows_come_back(kind, rows, data, tmp_path):
    comes_back(kind, rows, data, tmp_path)


@pytest.mark.slow
@KINDS
@settings(max_examples=20_000 // 6, **RELAXED)
@given(rows=ROWS, data=st.data())
def test_many_rows_come_back(kind, rows, data, tmp_path):
    comes_back(kind, rows, data, tmp_path)


@settings(max_examples=150, **RELAXED)
@given(
    content=st.binary(max_size=200),
    extension=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "csv.gz", "zst"]),
)
def test_any_bytes_are_rows_or_a_clear_word(content, extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    try:
        rows = list(open_table(str(path), shape="texts"))
    except ValueError as error:
        assert path.name in str(error)
    else:
        assert all(row.problem or isinstance(row.values, dict) for row in rows)
