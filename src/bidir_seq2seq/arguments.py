"""Command lines of the scripts: flags, a YAML or JSON file of settings, or such a file and flags to override it."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

SETTINGS_FILES = (".yaml", ".yml", ".json")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the examples of a description as they are written."""


class _Parser(HfArgumentParser):
    """Says what is wrong in a line; a usage of a hundred flags would hide it."""

    def error(self, message: str) -> NoReturn:
        # Each flag has two names, with underscores and with hyphens.
        message = re.sub(r"/--[\w-]+", "", message)
        raise ValueError(f"{message}; see --help")


def parse_arguments(
    *dataclass_types: type, description: str, args: Sequence[str] | None = None, first: str | None = None
) -> tuple:
    """Reads one object of each dataclass from flags, from a settings file given first, or from both.

    Args:
        dataclass_types: As for `HfArgumentParser`.
        description: Shown by `--help`.
        args: Instead of `sys.argv[1:]`.
        first: The setting that is meant by what is given first and is neither a flag nor a settings file.
            Default: none.

    Returns:
        One object a type, in their order. Flags after a settings file have the last word.

    Raises:
        ValueError: If the settings file cannot be read, is no mapping, holds an unknown setting, or text as a number;
            on arguments that belong to no setting, or are none of a setting's choices; and if one is missing.
    """
    args = list(sys.argv[1:] if args is None else args)
    parser = _Parser(dataclass_types, description=description, formatter_class=_HelpFormatter)
    is_file = bool(args) and args[0].endswith(SETTINGS_FILES)
    if first and args and not is_file and not args[0].startswith("-"):
        args = [f"--{first}", *args]
    if not is_file:
        *found, unknown = parser.parse_args_into_dataclasses(args, return_remaining_strings=True)
        _check_known(unknown, parser)
        return tuple(found)
    settings = _read_settings(args[0], dataclass_types)
    return parser.parse_dict({**settings, **_overrides(parser, args[1:])})


def _check_known(unknown: Sequence[str], parser: HfArgumentParser) -> None:
    if not unknown:
        return
    name = unknown[0]
    close = difflib.get_close_matches(name.split("=")[0], parser._option_string_actions, n=1)
    if close:
        hint = f"did you mean {close[0]}?"
    elif name.startswith("-"):
        hint = "see --help for those there are"
    else:
        hint = "a value stands after the name of its setting; see --help"
    raise ValueError(f"{name!r} is no setting of this command: {hint}")


def check_numbers(arguments: object, **least: int | float) -> None:
    """Makes sure that settings are numbers that mean something, before anything is read or loaded.

    Args:
        arguments: An object of settings, of which `None` is left alone.
        least: For each setting its least value: a whole number if it is counted in such, else a float.

    Raises:
        ValueError: Naming the setting, its value and what it may be.
    """
    for name, bound in least.items():
        value = getattr(arguments, name)
        if value is None:
            continue
        kind, words = (int, "a whole number") if isinstance(bound, int) else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value) or value < bound:
            known = f"{words} of at least {bound:g}" if bound > -math.inf else words
            raise ValueError(f"{name}={value!r} must be {known}{_other_remedy(arguments, name)}")


def _other_remedy(arguments: object, name: str) -> str:
    """What else to do about a setting than to give a number: a default that is `None` says that it may be left out."""
    default = getattr(arguments, "__dataclass_fields__", {})[name].default
    if default is dataclasses.MISSING:
        return ""
    return ", or leave it out" if default is None else f", or leave it out for {default!r}"


def _read_settings(path: str, dataclass_types: Sequence[type]) -> dict[str, Any]:
    text = Path(path).read_text(encoding="utf-8")
    try:
        settings = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as settings: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds {settings!r}: write settings as name: value")
    types: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    for dataclass_type in dataclass_types:
        hints = get_type_hints(dataclass_type)
        own = [field for field in dataclasses.fields(dataclass_type) if field.init]
        types |= {field.name: hints[field.name] for field in own}
        choices |= {field.name: field.metadata["choices"] for field in own if "choices" in field.metadata}
    found = {name: _as_list(_as_its_kind(path, name, value, types), types[name]) for name, value in settings.items()}
    # What is left blank is left out.
    found = {name: value for name, value in found.items() if value is not None}
    for name in found.keys() & choices.keys():
        for value in found[name] if isinstance(found[name], list) else [found[name]]:
            if value not in choices[name]:
                raise ValueError(
                    f"{path}: {name} is {value!r}, but it must be one of {', '.join(map(str, choices[name]))}"
                )
    return found


def _as_list(value: Any, kind: Any) -> Any:
    """`value`, as a list if it is a text and a list is all that its setting takes."""
    is_list = all(get_origin(each) is list for each in _kinds(kind))
    return [value] if isinstance(value, str) and is_list else value


def _kinds(kind: Any) -> set[Any]:
    """What a setting may be, beside nothing."""
    return set(get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else [kind]) - {type(None)}


def _as_its_kind(path: str, name: str, value: Any, types: dict[str, Any]) -> Any:
    """`value`, as a number or a truth if it is text and that is all that its setting takes.

    Raises:
        ValueError: If there is no such setting, or it takes other values, which nobody would notice later.
    """
    if name not in types:
        close = difflib.get_close_matches(str(name), types, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see --help for those there are"
        raise ValueError(f"{path}: there is no setting {name!r}; {hint}")
    kinds = _kinds(types[name])
    if value is False and name.endswith("_strategy"):
        # YAML 1.1 takes no for false.
        return "no"
    if value is not None and kinds <= {str, list[str]}:
        for text in value if isinstance(value, list) and list[str] in kinds else [value]:
            if not isinstance(text, str):
                raise ValueError(
                    f"{path}: {name} is {text!r}, which is no text: put it in quotes (YAML takes no, off, yes and on "
                    "for truths, and digits for a number)"
                )
    if kinds == {bool} and not isinstance(value, str) and value not in (None, 0, 1):
        raise ValueError(f"{path}: {name} is {value!r}, but it must be true or false")
    if isinstance(value, str) and kinds == {bool}:
        try:
            return string_to_bool(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{path}: {name} is the text {value!r}, but it must be true or false") from error
    if not isinstance(value, str) or not kinds <= {int, float}:
        return value
    try:
        # YAML 1.1 takes 1e-3 for text; it wants 1.0e-3.
        return (float if float in kinds else int)(value)
    except ValueError as error:
        raise ValueError(
            f"{path}: {name} is the text {value!r}, but it must be a number, such as 0.001 or 2"
        ) from error


def _overrides(parser: HfArgumentParser, flags: list[str]) -> dict[str, Any]:
    """What was given as flags, and nothing else."""
    for action in parser._actions:
        # The file may have given it, and a default would pass for a flag.
        action.required, action.default = False, argparse.SUPPRESS
    found, unknown = parser.parse_known_args(flags)
    _check_known(unknown, parser)
    return vars(found)


__all__ = ["check_numbers", "parse_arguments"]
