"""The file of titles: whole or absent, and gone on with to the same bytes wherever it was cut."""

import json
import os

import pytest

from bidir_seq2seq.files import find_files
from bidir_seq2seq.title_file import TitleFile, describe_input, describe_model

SETTINGS = {"model": "m", "num_beams": 3}


def write(path, documents, start=None, resume=False, settings=SETTINGS, lines=2, window=3, finish=True):
    """Two lines for each document, from where the file says."""
    output = TitleFile(str(path), lines, window, settings, resume)
    for number in range(output.documents if start is None else start, documents):
        output.write([f"title {number}.{line}" for line in range(lines)])
    if finish:
        output.finish()
    else:
        output.close()
    return output


def test_it_gets_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "titles.txt"
    path.write_text("old\n")
    write(path, 7, finish=False)
    assert path.read_text() == "old\n"
    assert (tmp_path / "titles.txt.partial").read_text().count("\n") == 12
    write(path, 7)
    assert path.read_text() == "".join(f"title {i}.{j}\n" for i in range(7) for j in range(2))
    assert os.listdir(tmp_path) == ["titles.txt"]


def test_it_goes_on_to_the_same_bytes_wherever_it_was_cut(tmp_path):
    path, partial = tmp_path / "titles.txt", tmp_path / "titles.txt.partial"
    write(path, 10)
    whole = path.read_bytes()
    path.unlink()
    for size in range(len(whole) + 1):
        write(path, 0, finish=False)
        partial.write_bytes(whole[:size])
        output = write(path, 10, resume=True)
        assert path.read_bytes() == whole and output.documents == 10
        path.unlink()


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "titles.txt"
    write(path, 7, finish=False)
    before = (tmp_path / "titles.txt.partial").read_bytes()
    with pytest.raises(ValueError, match="begun with other settings: num_beams was 3 and is 4; .*--resume"):
        write(path, 7, resume=True, settings={**SETTINGS, "num_beams": 4})
    with pytest.raises(ValueError, match="seed was None and is 1"):
        write(path, 7, resume=True, settings={**SETTINGS, "seed": 1})
    (tmp_path / "titles.txt.partial.json").write_text("{")
    with pytest.raises(ValueError, match="missing or damaged"):
        write(path, 7, resume=True)
    assert (tmp_path / "titles.txt.partial").read_bytes() == before


def test_what_is_finished_is_left_alone_and_what_is_absent_begun(tmp_path):
    path = tmp_path / "titles.txt"
    write(path, 4, resume=True)
    assert path.read_text().count("\n") == 8
    assert TitleFile(str(path), 2, 3, {"other": 1}, resume=True).is_finished


def test_two_processes_do_not_write_one_file(tmp_path):
    output = TitleFile(str(tmp_path / "titles.txt"), 1, 1, {})
    output.write(["a"])
    for resume in (False, True):
        with pytest.raises(ValueError, match="being written by another process"):
            TitleFile(str(tmp_path / "titles.txt"), 1, 1, {}, resume)
    output.finish()
    assert (tmp_path / "titles.txt").read_text() == "a\n"


def test_a_pipe_is_written_directly_and_a_link_stays_one(tmp_path):
    write("/dev/null", 4)
    assert not os.path.isfile("/dev/null") and not os.path.exists("/dev/null.partial")
    (tmp_path / "there").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "there" / "titles.txt")
    write(tmp_path / "link.txt", 1)
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there" / "titles.txt").read_text().count("\n") == 2


def test_each_document_has_as_many_lines(tmp_path):
    with pytest.raises(ValueError, match="1 lines for a document that has 2"):
        TitleFile(str(tmp_path / "titles.txt"), 2, 3, {}).write(["a"])


def test_descriptions_change_with_what_they_describe(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    first = describe_input(find_files(str(tmp_path / "a.txt"))), describe_model(str(tmp_path))
    assert first == (describe_input(find_files(str(tmp_path / "a.txt"))), describe_model(str(tmp_path)))
    (tmp_path / "a.txt").write_text("b")
    (tmp_path / "config.json").write_text(json.dumps({"a": 2}))
    second = describe_input(find_files(str(tmp_path / "a.txt"))), describe_model(str(tmp_path))
    assert first[0] != second[0] and first[1] != second[1]
    assert describe_model("user/name") == "user/name"
