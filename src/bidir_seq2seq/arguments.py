"""Command lines of the scripts: flags, or one YAML or JSON file of settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from transformers import HfArgumentParser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the examples of a description as they are written."""


def parse_arguments(*dataclass_types: type, description: str, args: Sequence[str] | None = None) -> tuple:
    """Reads one object of each dataclass from flags, or from a settings file given as the only argument.

    Args:
        dataclass_types: As for `HfArgumentParser`.
        description: Shown by `--help`.
        args: Instead of `sys.argv[1:]`.

    Returns:
        One object a type, in their order.

    Raises:
        ValueError: If the settings file holds an unknown setting.
    """
    args = list(sys.argv[1:] if args is None else args)
    parser = HfArgumentParser(dataclass_types, description=description, formatter_class=_HelpFormatter)
    if len(args) == 1 and args[0].endswith((".yaml", ".yml")):
        return parser.parse_yaml_file(args[0])
    if len(args) == 1 and args[0].endswith(".json"):
        return parser.parse_json_file(args[0])
    return parser.parse_args_into_dataclasses(args)


__all__ = ["parse_arguments"]
