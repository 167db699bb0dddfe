import json

import pytest

from bidir_seq2seq.manifest import MANIFEST_NAME, differences, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "part" / "config").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_what_is_as_it_was_saved_has_no_differences(folder):
    assert differences(folder) == {}
    assert set(json.loads((folder / MANIFEST_NAME).read_text())["files"]) == {"weights", "part/config"}
    # What came later is not recorded.
    (folder / "notes").write_text("mine")
    assert differences(folder) == {}


@pytest.mark.parametrize("place", [0, 1_200_000, 2_303_999])
def test_one_flipped_bit_is_found(folder, place):
    content = bytearray((folder / "weights").read_bytes())
    content[place] ^= 1
    (folder / "weights").write_bytes(content)
    assert list(differences(folder)) == ["weights"] and "checksum" in differences(folder)["weights"]


def test_a_file_that_is_cut_or_gone_is_named(folder):
    (folder / "weights").write_bytes(b"123")
    (folder / "part" / "config").unlink()
    assert differences(folder) == {"part/config": "is missing", "weights": "has 3 bytes instead of 2,304,000"}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"files": {"weights": 3}}', '{"files": {"weights": {"bytes": 3}}}']
)
def test_a_damaged_manifest_is_named(folder, content):
    (folder / MANIFEST_NAME).write_text(content)
    assert list(differences(folder)) == [MANIFEST_NAME]


def test_only_the_files_asked_for_are_recorded(tmp_path):
    assert differences(tmp_path) is None
    for name in ("weights", "card"):
        (tmp_path / name).write_text(name)
    assert write_manifest(tmp_path, ["weights"]) == tmp_path / MANIFEST_NAME
    (tmp_path / "card").write_text("rewritten")
    assert differences(tmp_path) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card", MANIFEST_NAME, "weights"]
