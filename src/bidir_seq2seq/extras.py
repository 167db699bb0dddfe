"""What is installed only for some uses, and what to say where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of what an extra of this package installs: says how to get it.

    Args:
        name: The extra, as in `pip install 'bidir_seq2seq[name]'`.

    Raises:
        ImportError: If a package is not installed, naming it and the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ImportError(
            f"{package} is not installed, which this needs: pip install 'bidir_seq2seq[{name}]'", name=error.name
        ) from error


__all__ = ["extra"]
