"""Every kind of file that people have, and what is in it."""

import bz2
import gzip
import http.server
import json
import lzma
import os
import sys
import threading
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from bidir_seq2seq.data import KNOWN_COLUMNS, choose_columns, load_pairs, read_texts
from bidir_seq2seq.files import PACKINGS, ROW_KINDS, find_files
from bidir_seq2seq.tables import cell, open_table

PAIRS = [("a b", "x"), ("c, d", "y"), ("é 中", "z")]
ROWS = [{"source": source, "target": target} for source, target in PAIRS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'source,target\na b,x\n"c, d",y\né 中,z\n'
TSV = "source\ttarget\na b\tx\nc, d\ty\né 中\tz\n"


@pytest.fixture
def warned(monkeypatch):
    messages = []
    for module in ("data", "files", "tables"):
        for method in ("warning_once", "warning"):
            monkeypatch.setattr(f"bidir_seq2seq.{module}.logger.{method}", messages.append, raising=False)
    return messages


def read(names, **settings):
    """Source and target of each row, bad ones as `None`, straight from the files."""
    table = open_table(names)
    columns = [column for column in choose_columns(table.columns) if column]
    return [texts and tuple(texts) for _, texts in read_texts(table, columns, **settings)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.json", LINES),
        ("A.JSONL", LINES),
        ("blank.jsonl", LINES.replace("\n", "\n\n")),
        ("mark.jsonl", "\ufeff" + LINES),
        ("feeds.jsonl", LINES.replace("\n", "\r\n")),
        ("list.json", json.dumps(ROWS)),
        ("pretty.json", json.dumps(ROWS, indent=2)),
        ("list.jsonl", json.dumps(ROWS, indent=2)),
        ("data.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("pretty_data.json", json.dumps({"data": ROWS}, indent=1)),
        ("nested.jsonl", "".join(json.dumps({"id": 1, "translation": {"en": a, "de": b}}) + "\n" for a, b in PAIRS)),
        ("translation.json", json.dumps({"data": [{"translation": {"en": a, "de": b}} for a, b in PAIRS]})),
        ("names.jsonl", "".join(json.dumps({" Title": b, "id": 7, "TEXT ": a}) + "\n" for a, b in PAIRS)),
        ("deep.jsonl", "".join(json.dumps({"n": 1, "row": {"target": b, "source": a}}) + "\n" for a, b in PAIRS)),
        ("a.csv", CSV),
        ("quoted.csv", 'source,target\n"a b","x"\n"c, d","y"\n"é 中","z"'),
        ("feeds.csv", CSV.replace("\n", "\r\n")),
        ("mark.csv", "\ufeff" + CSV),
        ("semicolon.csv", "source;target\na b;x\nc, d;y\né 中;z\n"),
        ("bar.csv", "source|target\na b|x\nc, d|y\né 中|z\n"),
        ("excel.csv", "Text;Title;;\na b;x;;\nc, d;y;;\né 中;z;;\n"),
        ("told.csv", "sep=;\nsource;target\na b;x\nc, d;y\né 中;z\n"),
        ("told_mark.csv", '\ufeff"SEP=,"\r\n' + CSV.replace("\n", "\r\n")),
        ("told_sign.csv", "sep=^\nsource^target\na b^x\nc, d^y\né 中^z\n"),
        ("told_tab.csv", "sep=\t\n" + TSV),
        ("ids.csv", 'id,Article,Highlights\n1,a b,x\n2,"c, d",y\n3,é 中,z\n'),
        ("a.tsv", TSV),
        ("feeds.tsv", TSV.replace("\n", "\r\n")),
        ("a.csv.gz", CSV),
        ("a.tsv.bz2", TSV),
        ("a.jsonl.xz", LINES),
        ("a.jsonl.zst", LINES),
        ("list.json.gz", json.dumps(ROWS)),
    ],
)  # fmt: skip
def test_each_kind_of_file_holds_the_same_pairs(name, content, tmp_path):
    path = tmp_path / name
    packings = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
    path.write_bytes(packings.get(name.rsplit(".", 1)[-1], bytes)(content.encode("utf-8")))
    assert read(str(path)) == PAIRS


def zstd(content: bytes) -> bytes:
    # Two frames, as of files that were put together.
    return b"".join(pyarrow.Codec("zstd").compress(part, asbytes=True) for part in (content[:20], content[20:]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "content"), [("a.csv", CSV), ("a.tsv", TSV), ("a.jsonl", LINES)])
def test_marks_say_the_encoding(encoding, name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read(str(tmp_path / name)) == PAIRS


WORDS = {
    "cp1252": "Les élèves ont été très déçus : où étaient les bêtises ?",
    "cp1250": "Vláda ve středu oznámila nová opatření, příliš pozdě.",
    "cp1251": "Правительство объявило о новых мерах.",
    "gb18030": "新华社北京电，国务院周三宣布了一系列新措施。",
    "big5": "總統週三宣布一系列旨在減少排放的新措施。",
    "cp932": "政府は水曜日、一連の新しい措置を発表した。",
    "cp949": "정부는 수요일 새로운 조치를 발표했다.",
}


@pytest.mark.parametrize("encoding", WORDS)
def test_other_encodings_are_told_from_their_text_and_said(encoding, tmp_path, warned):
    path = tmp_path / "a.csv"
    rows = [(WORDS[encoding], "x"), ("plain", "y")]
    path.write_bytes("".join(f'"{a}",{b}\n' for a, b in [("source", "target"), *rows]).encode(encoding))
    assert read(str(path)) == rows
    assert f"read as {encoding}" in warned[0] and "--encoding" in warned[0] and "(line 2)" in warned[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source,target\ncafé,b\n".encode("cp1252"), r"0xe9 at position 17 \(line 2\); in cp1252 it reads 'café,b'"),
        ("source,target\nDéjà vu à la plage, là où ça va été\n".encode("mac_roman"), r"line 2.*--encoding"),
        ("source,target\na,b\n".encode("utf-16-le"), "looks like UTF-16 without a mark; .*--encoding utf-16-le"),
        (b"\xef\xbb\xbfsource,target\n\xe9\xe8\xe0\xe9\xe8\xe0\xe9\xe8\xe0\xe9\xe8\xe0,b\n", "line 2"),
    ],
    ids=["short", "mac", "utf-16", "marked"],
)
def test_an_encoding_that_cannot_be_told_is_asked_for(content, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_table(str(tmp_path / "a.csv"))


def test_a_given_encoding_is_taken(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("source,target\ncafé,b\n".encode("mac_roman"))
    assert next(iter(open_table(str(path), "mac_roman"))).values == {"source": "café", "target": "b"}
    path.write_bytes("source,target\ncafé,b\n".encode("utf-16"))
    assert next(iter(open_table(str(path), "utf-16-le"))).values == {"source": "café", "target": "b"}
    with pytest.raises(ValueError, match="not utf-8: .*--encoding"):
        open_table(str(path), "utf-8")
    with pytest.raises(ValueError, match="encoding='klingon' is not one"):
        open_table(str(path), "klingon")


@pytest.mark.parametrize(
    "text",
    ["2024-01-31", "2024-01-31T10:00:00", "10:30", "007", "1.50", "1e5", "true", "null", "NA", "nan", "None", "",
     " a ", '"', 'say "a"', "a\u2028b", "a\x85b", "a\x0cb", "a\x00b", "\ufdd0\r\ufdd1", "{}", "[1]",
     "\u202ea", "👩‍👩‍👧"],
)  # fmt: skip
@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_what_looks_like_something_else_stays_text(text, extension, tmp_path):
    if extension == "csv" and "\x00" in text and sys.version_info < (3, 11):
        pytest.skip("csv of this Python knows no NUL")
    path = str(tmp_path / f"a.{extension}")
    rows = [("abc", text), (text, "abc")]
    write_rows(path, rows)
    assert read(path) == rows
    pairs = load_pairs({"train": str(tmp_path / "a.*")}, cache_dir=str(tmp_path / "cache"))["train"]
    assert [(pair["source"], pair["target"]) for pair in pairs] == rows


def write_rows(path: str, rows: list[tuple[str, str]]) -> None:
    """Source and target in the format that the path says, as a careful program writes them."""
    objects = [{"source": source, "target": target} for source, target in rows]
    if path.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(objects), path)
        return
    cells = [("source", "target"), *rows]
    content = {
        "csv": lambda: "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in cells),
        "tsv": lambda: "".join("\t".join(row) + "\n" for row in cells),
        "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in objects),
        "json": lambda: json.dumps(objects, ensure_ascii=False, indent=1),
    }[path.rsplit(".", 1)[-1]]()
    Path(path).write_bytes(content.encode("utf-8"))


def test_two_plain_files_are_sources_and_targets(tmp_path):
    (tmp_path / "c.en").write_bytes(b"a\x0cb\n\nc\r\n")
    (tmp_path / "c.de").write_bytes(b"x\ny\nz")
    pairs = [("a\x0cb", "x"), ("", "y"), ("c", "z")]
    files = [str(tmp_path / name) for name in ("c.en", "c.de")]
    assert read(files) == read(str(tmp_path / "c.{en,de}")) == pairs
    (tmp_path / "c.fr.gz").write_bytes(gzip.compress(b"x\ny\nz\n"))
    assert read([files[0], str(tmp_path / "c.fr.gz")]) == pairs
    (tmp_path / "c.de").write_bytes(b"x\ny\nz\n\n")
    with pytest.raises(ValueError, match=r"c.en has 3 lines and .*c.de has 4: each line needs its counterpart"):
        open_table(files)
    with pytest.raises(ValueError, match="two files of plain text, line by line"):
        open_table(files[0])
    (tmp_path / "c.csv").write_text(CSV)
    with pytest.raises(ValueError, match="cannot be mixed"):
        open_table([files[0], str(tmp_path / "c.csv")])


def test_several_files_are_read_one_after_the_other(tmp_path):
    for number, content in enumerate((CSV, LINES)):
        (tmp_path / f"part{number}.{'csv' if number == 0 else 'jsonl'}").write_text(content, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not rows\n")
    (tmp_path / ".hidden.csv").write_text("x\n")
    expected = PAIRS * 2
    assert read(str(tmp_path / "part*")) == read(str(tmp_path)) == expected
    assert read([str(tmp_path / "part1.jsonl"), str(tmp_path / "part0.csv")]) == expected
    (tmp_path / "part2.csv").write_text("other,names\na,b\n")
    with pytest.raises(ValueError, match=r"part2.csv has \['other', 'names'\]"):
        open_table(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("absent.csv", "no*.csv", "empty"):
        with pytest.raises(FileNotFoundError, match=r"there is no file|holds no file"):
            open_table(str(tmp_path / name))


def test_folders_that_datasets_saved(tmp_path):
    one = Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(tmp_path / "two")
    assert read(str(tmp_path / "one")) == PAIRS
    for settings in (
        {"dataset_name": str(tmp_path / "two")},
        {"files": {"train": str(tmp_path / "two"), "test": str(tmp_path / "two")}},
    ):
        pairs = load_pairs(**settings, cache_dir=str(tmp_path / "cache"))
        assert {name: split.to_list() for name, split in pairs.items()} == {"train": ROWS, "test": ROWS[2:]}
    with pytest.raises(ValueError, match="none of which is 'validation'"):
        load_pairs({"validation": str(tmp_path / "two")})


TABLES = {
    "columns.json": json.dumps({"source": {"0": "a", "1": "c"}, "target": {"0": "b", "1": "d"}}),
    "columns.jsonl": json.dumps({"source": {"7": "a", "9": "c"}, "target": {"7": "b", "9": "d"}}),
    "index.json": json.dumps({"0": {"source": "a", "target": "b"}, "1": {"source": "c", "target": "d"}}, indent=1),
    "list.json": json.dumps(
        {"version": "1", "data": [{"source": "a", "target": "b"}, {"source": "c", "target": "d"}]}
    ),
    "list.jsonl": json.dumps({"data": [{"source": "a", "target": "b"}, {"source": "c", "target": "d"}]}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_inside_one_object(name, tmp_path):
    (tmp_path / name).write_text(TABLES[name])
    assert read(str(tmp_path / name)) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    "row",
    [
        {"article": "a", "headline": "b", "tags": [{"name": "x", "id": 1}, {"name": "y", "id": 2}]},
        {"translation": {"en": "a", "de": "b"}, "more": [{"en": "x", "de": "y"}]},
        {"translation": {"en": "a", "de": "b"}},
    ],
)
def test_a_single_line_is_a_row(row, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read(str(path)) == [("a", "b")]


def test_columns_of_one_name_keep_all_that_they_hold(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("a,a.1,a,b,a\n1,2,3,4,5\n")
    (row,) = open_table(str(path))
    assert row.values == {"a": "1", "a.1": "2", "a.2": "3", "b": "4", "a.3": "5"}


@pytest.mark.parametrize("card", [None, "", "# Mine", "---\nlicense: mit\n---\n# Mine"])
def test_cells_of_a_local_dataset_are_text_too(card, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    (folder / "train.csv").write_text("source,target\n007,NA\n2024-01-01,null\n")
    (folder / "test.csv").write_text("source,target\n1.50,x\n")
    pairs = load_pairs(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))
    assert pairs["train"].to_list() == [
        {"source": "007", "target": "NA"},
        {"source": "2024-01-01", "target": "null"},
    ]
    assert pairs["test"].to_list() == [{"source": "1.50", "target": "x"}]


def test_an_address_is_read_like_a_file(tmp_path, monkeypatch):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"source,target\n007,NA\n"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rows = [row.values for row in open_table(f"http://127.0.0.1:{server.server_port}/a.csv.gz?download=1")]
        server.shutdown()
    assert rows == [{"source": "007", "target": "NA"}]


@pytest.mark.parametrize(
    ("name", "content", "good", "reason"),
    [
        ("a.jsonl", '{"source": "a", "target": "x"}\n{"source": "b", "tar\n', [("a", "x")], "line 2 is not JSON"),
        ("a.jsonl", '{"source": "a", "target": "x"}\n[1]\n', [("a", "x")], "line 2 is not an object, but"),
        ("a.jsonl", '{"source": "a", "target": "x"}\n{"source": 5, "target": "y"}\n', [("a", "x")], "line 2 .* but 5"),
        ("a.jsonl", '{"source": "a", "target": "x"}\n{"source": "a", "target": true}\n', [("a", "x")], "but True"),
        ("a.jsonl", '{"source": "a", "target": "x"}\n{"source": ["a"], "target": "y"}\n', [("a", "x")], "but ."),
        ("a.jsonl", '{"source": "a", "target": "x"}\n{"source": "\\ud800", "target": "y"}\n', [("a", "x")], "half a"),
        ("a.json", '[{"source": "a", "target": "x"}, 7]', [("a", "x")], "entry 2 is not an object, but 7"),
        ("a.csv", "source,target\na,x\nb\n", [("a", "x")], "line 3 has 1 fields, its header 2"),
        ("a.csv", "source,target\na,x\nb,c,d\n", [("a", "x")], "line 3 has 3 fields, its header 2"),
        ("a.csv", 'source,target\na,x\n"b,y\nc,z\n', [("a", "x")], r"line 3 .*unexpected end.*up to line 4.*doubled"),
        ("a.csv", 'source,target\na,x\n"b" c,y\nd,z\n', [("a", "x"), ("d", "z")], "line 3 cannot be read"),
        ("a.tsv", "source\ttarget\na\tx\nb\ty\tz\n", [("a", "x")], "line 3 has 3 fields.*a tab cannot"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(name, content, good, reason, tmp_path, warned):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{name}: .*{reason}.*on_bad_rows skip"):
        load_pairs({"train": str(path)}, cache_dir=str(tmp_path / "cache"))
    # Twice: what the cache holds tells the same.
    for _ in range(2):
        warned.clear()
        pairs = load_pairs({"train": str(path)}, cache_dir=str(tmp_path / "cache"), on_bad_rows="skip")["train"]
        assert [(pair["source"], pair["target"]) for pair in pairs] == good
        assert sum(f"1 of {len(good) + 1} rows are skipped, the first: " in message for message in warned) == 1
    kept = read(str(path), on_bad_rows="skip")
    assert [pair for pair in kept if pair] == good and kept.count(None) == 1


def test_null_and_missing_values_are_empty_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"source": "a", "target": null}\n{"source": "b"}\n{"target": "c", "source": ""}\n'
    )
    assert read(str(tmp_path / "a.jsonl")) == [("a", None), ("b", None), ("", "c")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[\n{"source": "a"},\n{"source": b}\n]', "a.json: is not JSON: .*line 3"),
        ("a.jsonl.gz", "plain", "a.jsonl.gz: cannot be unpacked as .gz"),
        ("a.csv.zst", "plain", "a.csv.zst: cannot be unpacked as .zst"),
        ("a.parquet", "plain", "a.parquet: is no whole parquet file"),
        ("a.json", "7", "is not an object, but 7"),
        ("a.xls", "x", "unknown file type .xls; .*saves as CSV"),
    ],
)
def test_a_file_that_is_broken_as_a_whole(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_table(str(tmp_path / name))


def test_a_torn_packed_file_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 100)[:-20])
    with pytest.raises(ValueError, match="a.jsonl.gz: cannot be unpacked as .gz.*is it whole"):
        open_table(str(tmp_path / "a.jsonl.gz"))


def test_long_cells_and_line_breaks_in_them(tmp_path):
    text = "line\r\nand\nline\r" + "x" * 200_000
    rows = [(text, "a"), ("b", text)]
    write_rows(str(tmp_path / "a.csv"), rows)
    assert read(str(tmp_path / "a.csv")) == rows


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        (["id", "Title", "TEXT"], {}, ("TEXT", "Title")),
        (["a", "b"], {}, ("a", "b")),
        (["id", "en", "de"], {}, ("en", "de")),
        (["id", "translation.de", "translation.en"], {}, ("translation.de", "translation.en")),
        (["x", "en", "de", "fr"], {}, ("x", "en")),
        (["en", "de"], {"source_column": "de", "target_column": "en"}, ("de", "en")),
        (["id", "Source Text", "b"], {"source_column": "source text", "target_column": "B "}, ("Source Text", "b")),
        (["a.text", "b.text", "title"], {}, ("a.text", "b.text")),
        (["only"], {}, ("only", None)),
    ],
)
def test_columns_are_chosen_by_name_then_by_place(columns, given, expected):
    assert choose_columns(columns, **given) == expected


def test_paths_lead_into_objects():
    row = {"a": {"b": {"c": 1}, "b.c": 2}, "a.d": 3, "e.f": {"g": 4}}
    assert [cell(row, name) for name in ("a.b.c", "a.d", "e.f.g", "a.x", "a.b.c.d", "z")] == [
        2,
        3,
        4,
        None,
        None,
        None,
    ]


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = tmp_path / "a.tsv"
    for content in ("x", "y"):
        path.write_text(f"source\ttarget\na\t{content}\n")
        pairs = load_pairs({"train": str(path)}, cache_dir=str(tmp_path / "cache"))["train"]
        assert pairs.to_list() == [{"source": "a", "target": content}]
        os.utime(path, ns=(1, find_files(str(path))[0].stamp[1] + 10**9))


def test_a_dataset_that_says_itself_how_it_is_read(tmp_path):
    folder = tmp_path / "mine"
    (folder / "all").mkdir(parents=True)
    rows = [{"id": 1, "translation": {"en": "007", "de": "x"}}, {"id": 2, "translation": {"en": "b", "de": "y"}}]
    (folder / "all" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: all/a.jsonl\n---\n"
    )
    pairs = load_pairs(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert pairs.to_list() == [{"source": "007", "target": "x"}, {"source": "b", "target": "y"}]
    with pytest.raises(ValueError, match="is read by datasets, to which encoding='gb18030'"):
        load_pairs(dataset_name=str(folder), encoding="gb18030")
    columns = {"source_column": "translation.de", "target_column": "translation.en"}
    pairs = load_pairs(dataset_name=str(folder), cache_dir=str(tmp_path / "cache"), **columns)["train"]
    assert pairs[0] == {"source": "x", "target": "007"}


def test_the_page_names_all_columns_and_kinds():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    assert [f"{a}/{b}" for a, b in KNOWN_COLUMNS if f"{a}/{b}" not in words] == []
    assert [kind for kind in (*ROW_KINDS, *PACKINGS) if f"`.{kind}`" not in page] == []
