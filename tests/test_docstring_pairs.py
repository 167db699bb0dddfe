import json
from collections import Counter
from pathlib import Path

import pytest

from docstring_pairs import MAX_REPEATS, gather_pairs, main, pairs_of_file, split_docstring

GOOD = '''
class TableReader:
    def read_csv(self, file_path, *, sep=","):
        """Read a table from a *comma-separated* file. The file may be compressed, and is separated by a comma.

        Args:
            file_path (`str`, *optional*, defaults to `None`): Where the :class:`~files.Table` is stored.

        Example::

            >>> reader.read_csv("x.csv")
            42

        See Also:
            write_csv: the inverse
        """
'''


def spell(number: int) -> str:
    """Names a number in letters, as digits do not make texts different."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def write_functions(
    folder: Path, count: int, *, name: str = "{0}", summary: str = "Compute the {0} value of {0}", body: str = "{0}"
) -> Path:
    """Writes one function per file, which differ in the opening of the body unless `body` says otherwise."""
    tail = "to compute the value of a thing, and return the same old text or write another about it instead"
    folder.mkdir(parents=True, exist_ok=True)
    for key in map(spell, range(count)):
        text = " ".join(
            body.format(key) + word for word in ["reads", "every", "row", "once", "and", "then", "adds", "them", "all"]
        )
        docstring = f'"""{summary.format(key)}.\n\n    {text} {tail}.\n    """'
        (folder / f"{key}.py").write_text(f"def {name.format(key)}():\n    {docstring}\n")
    return folder


def test_pair_is_extracted_exactly(tmp_path):
    path = tmp_path / "reader.py"
    path.write_text(GOOD)
    (pair,), dropped = pairs_of_file(path)
    assert pair.document == (
        "method Table Reader read csv (file path, sep): "
        "The file may be compressed, and is separated by a comma. file_path: Where the Table is stored."
    )
    assert pair.summary == "Read a table from a comma-separated file"
    assert not dropped


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Title on\ntwo lines.\n\nBody text.", ("Title on two lines", "Body text.")),
        ("Handle lists, e.g. Tuples. Then more.", ("Handle lists, e.g. Tuples", "Then more.")),
        ("T.\n\nParameters\n----------\nx : int\n    The size.\n", ("T", "x : int The size.")),
        ("T.\n\n:param int x: The size.\n:type x: int\n:returns: A sum.", ("T", "x: The size. A sum.")),
        ("T.\n\nBefore::\n\n    code()\n\nAfter.", ("T", "Before: After.")),
        ("T.\n\n```python\ncode()\n```\nAfter.", ("T", "After.")),
        ("T.\n\n>>> f()\n1\n\nAfter.", ("T", "After.")),
        ("T.\n\n.. note:: Read `this <https://x.org>`_ first.", ("T", "Read this first.")),
        ("T.\n\n.. code-block:: python\n\n    code()\n\nAfter.", ("T", "After.")),
    ],
)
def test_split_removes_markup(docstring, expected):
    assert split_docstring(docstring) == expected


def test_body_is_cut_at_a_line_end():
    _, body = split_docstring("T.\n\n" + "one two three four five six seven\n" * 100)
    assert len(body.split()) == 98


@pytest.mark.parametrize(
    ("docstring", "rule"),
    [
        ("Open the given file.\n\nToo short.", "short body"),
        ("Opens.\n\nThis body has more than eight words in it, really.", "summary length"),
        ("open the given file.\n\nThis body has more than eight words in it, really.", "summary is no sentence"),
        ("Open f(x) -> the file.\n\nThis body has more than eight words in it, really.", "not plain text"),
        ("Open the given file.\n\nThis body has more than eight words in it, really.", "summary of other words"),
        ("Open the given file.\n\nCopyright of this file is with all those who wrote it.", "licence"),
    ],
)
def test_poor_docstring_is_dropped_and_counted(tmp_path, docstring, rule):
    path = tmp_path / "poor.py"
    path.write_text(f'"""{docstring}"""')
    assert pairs_of_file(path) == ([], Counter({rule: 1}))


@pytest.mark.parametrize(
    "source",
    [b'"""Doc."""\ndef broken(:', b'"""\xff"""', b'"""Doc."""\0', b'"""Doc."""\nx = ' + b"(" * 500 + b")" * 500],
    ids=["syntax", "encoding", "null byte", "nesting"],
)
def test_broken_file_is_counted_and_the_rest_is_read(tmp_path, source):
    write_functions(tmp_path, 10)
    (tmp_path / "broken.py").write_bytes(source)
    splits, dropped = gather_pairs([tmp_path], num_workers=1)
    assert sum(map(len, splits.values())) == 10
    assert dropped == {"unreadable file": 1}


@pytest.mark.filterwarnings("error")
def test_warnings_of_parsed_code_are_silent(tmp_path):
    (tmp_path / "noisy.py").write_text(GOOD + '\npattern = "\\d"\nequal = 1 is 1\n')
    assert len(pairs_of_file(tmp_path / "noisy.py")[0]) == 1


def test_tests_vendored_and_generated_files_are_skipped(tmp_path):
    write_functions(tmp_path / "package", 10)
    for folder in ("tests", "_vendor"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "reader.py").write_text(GOOD)
    (tmp_path / "generated.py").write_text("# This file was automatically generated.\n" + GOOD)
    splits, _ = gather_pairs([tmp_path], num_workers=1)
    assert sum(map(len, splits.values())) == 10


def test_duplicates_are_removed(tmp_path):
    write_functions(tmp_path / "original", 10)
    write_functions(tmp_path / "copy", 10)
    splits, dropped = gather_pairs([tmp_path], num_workers=1)
    assert sum(map(len, splits.values())) == 10
    assert dropped["duplicate"] == 10


def test_frequent_summary_is_capped(tmp_path):
    write_functions(tmp_path, 20, summary="Return the same old thing")
    splits, dropped = gather_pairs([tmp_path], num_workers=1)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": MAX_REPEATS, "validation": 0, "test": 0}
    assert dropped == {"frequent summary or body": 20 - MAX_REPEATS}


@pytest.mark.parametrize("shared", ["name", "summary", "body"])
def test_pairs_with_one_equal_part_stay_together(tmp_path, shared):
    different = {"name": "twin_{0}", "summary": "Write another text about {0} instead", "body": "twin{0}"}
    write_functions(tmp_path / "original", 60)
    write_functions(tmp_path / "twin", 60, **{part: text for part, text in different.items() if part != shared})
    splits, dropped = gather_pairs([tmp_path], eval_samples=5, num_workers=1)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 100, "validation": 5, "test": 5}
    assert dropped == {"similar to a held-out pair": 10}

    part = {
        "name": lambda pair: pair["document"].partition(": ")[0],
        "summary": lambda pair: pair["summary"],
        "body": lambda pair: pair["document"].partition(": ")[2],
    }[shared]
    train, validation, test = ({part(pair) for pair in pairs} for pairs in splits.values())
    assert (len(train), len(validation), len(test)) == (50, 5, 5)
    assert not (train & validation or train & test or validation & test)


def test_same_files_give_the_same_sets(tmp_path):
    first = gather_pairs([write_functions(tmp_path / "here", 40)], num_workers=1)
    second = gather_pairs([write_functions(tmp_path / "other" / "place", 40)], num_workers=2)
    assert first == second


def test_training_set_is_limited(tmp_path):
    write_functions(tmp_path, 20)
    splits, dropped = gather_pairs([tmp_path], max_train_samples=3, eval_samples=1, num_workers=1)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 3, "validation": 1, "test": 1}
    assert dropped == {"over max_train_samples": 15}


def test_user_errors_name_value_and_remedy(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: name folders"):
        gather_pairs([tmp_path], num_workers=1)
    with pytest.raises(ValueError, match=r"eval_samples \(-1\).*give 0 or more"):
        gather_pairs([tmp_path], eval_samples=-1)


def test_script_writes_three_files_once(tmp_path, capsys):
    source = write_functions(tmp_path / "source", 20)
    output = tmp_path / "data" / "docstrings"
    arguments = ["--output_dir", str(output), "--roots", str(source), "--num_workers", "1"]

    main(arguments)
    assert sorted(file.name for file in output.iterdir()) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    rows = {
        file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in output.iterdir()
    }
    assert {name: len(split) for name, split in rows.items()} == {"train": 16, "validation": 2, "test": 2}
    assert all(row.keys() == {"document", "summary"} for split in rows.values() for row in split)
    assert "16 pairs in" in capsys.readouterr().out

    (output / "train.jsonl").write_text("mine")
    main(arguments)
    assert (output / "train.jsonl").read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().out

    main([*arguments, "--overwrite"])
    assert len((output / "train.jsonl").read_text().splitlines()) == 16


def test_script_help_names_files_and_defaults(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "train.jsonl" in printed and "(default: 25000)" in printed
