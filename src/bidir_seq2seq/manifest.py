"""The manifest of a saved folder: each file's size and checksum, written last, so that a changed bit has a name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

MANIFEST_NAME = "manifest.json"
CHUNK_BYTES = 1 << 20


def write_manifest(folder: str | Path, names: Iterable[str] | None = None) -> Path:
    """Records files of a folder, and does not return before they are on the disk.

    Args:
        folder: The folder.
        names: Paths of the files inside it; default: all files.

    Returns:
        The manifest, `manifest.json` in that folder, which appears in one piece or not at all.

    Raises:
        OSError: If a file cannot be read, or the manifest cannot be written.
    """
    folder = Path(folder)
    names = sorted(names or (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    files = {}
    for name in names:
        if name != MANIFEST_NAME:
            flush(folder / name)
            files[name] = {"bytes": (folder / name).stat().st_size, "sha256": checksum(folder / name)}
    manifest = folder / MANIFEST_NAME
    unfinished = manifest.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    flush(unfinished)
    unfinished.replace(manifest)
    flush(folder)
    return manifest


def renew_manifest(folder: str | Path) -> None:
    """Records the same files as they are now, for who has changed one on purpose, if there is a manifest."""
    manifest = Path(folder) / MANIFEST_NAME
    if manifest.exists():
        write_manifest(folder, json.loads(manifest.read_text(encoding="utf-8"))["files"])


def differences(folder: str | Path) -> dict[str, str] | None:
    """What has become of the files that the manifest of `folder` records.

    Returns:
        For each file that is not as it was saved, how it differs, in words; `None` if there is no manifest.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST_NAME
    if not manifest.exists():
        return None
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        recorded = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {MANIFEST_NAME: f"is damaged ({error})"}
    found = {name: _difference(folder / name, *entry) for name, entry in recorded.items()}
    return {name: words for name, words in found.items() if words is not None}


def _difference(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return "is missing"
    now = path.stat().st_size
    if now != size:
        return f"has {now:,} bytes instead of {size:,}"
    return None if checksum(path) == digest else "has other content than was saved (its checksum differs)"


def checksum(path: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk and survives a power cut."""
    if path.is_dir() and os.name == "nt":
        # Windows does not open folders, and keeps their lists safe itself.
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["MANIFEST_NAME", "checksum", "differences", "flush", "renew_manifest", "write_manifest"]
