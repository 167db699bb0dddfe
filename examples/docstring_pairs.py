"""Training pairs from the docstrings of the Python packages on this machine, for runs without a network.

    python examples/docstring_pairs.py --output_dir data/docstrings

By PEP 257 a docstring opens with a one-line summary and goes on with a longer body. Each documented class, function
and module therefore gives one example of the task "write the summary line": the document is its kind, name, argument
names and docstring body, and the summary is its first sentence. Files are parsed, never imported. It takes about a
minute and writes train, validation and test files.
"""

import ast
import hashlib
import json
import os
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from bidir_seq2seq.arguments import parse_arguments

MAX_BODY_WORDS = 100
MIN_BODY_WORDS = 8
SUMMARY_WORDS = range(3, 21)
# A summary that shares few words with its document rests on knowledge that no model of these pairs could have.
MIN_COVERAGE = 0.5
MAX_ARGUMENTS = 8
MAX_REPEATS = 3
OPENING_WORDS = 10

# Bundled copies of other packages and test suites repeat text that is found elsewhere, or is not written to be read.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "_vendor", "tests", "test", "testing", "idle_test"}
# It is only there to check this repository's types; without it the pairs are those that figures were measured on.
SKIPPED_FOLDERS |= {"mypy", "mypyc"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\bcf)(?<!\bvs)[.!?](?=\s+[^a-z\s]|$)")
_SECTION = (
    r"(?:Args?|Arguments|Parameters?|Attributes|Inputs?|Keyword Arguments|Other Parameters|Returns?|Yields?|Outputs?"
    r"|Raises|Warns|Notes?|Warnings?|Examples?|Usage|Shapes?|References|See Also)"
)
_HEADING = re.compile(rf"{_SECTION}\s*:{{0,2}}", re.IGNORECASE)
_LAST_SECTION = re.compile(r"(?:See Also|References|Raises)\s*:?", re.IGNORECASE)
_EXAMPLE = re.compile(r"(?:Examples?|Example usage|Usage)\s*:{1,2}", re.IGNORECASE)
_UNDERLINE = re.compile(r"([-=~^\"'#*+])\1{2,}")
_CODE_DIRECTIVE = re.compile(
    r"\.\. *(?:code|code-block|sourcecode|ipython|plot|math|doctest|testcode|figure|image|highlight|autosummary"
    r"|versionadded|versionchanged|deprecated|currentmodule|_|\[)"
)
_DIRECTIVE = re.compile(r"\.\. *[\w-]+::\s*|\.\. ")
_FIELD = re.compile(r":(?:param|arg|keyword|ivar|var|attr)\s+(?:[^:]*\s)?(\S+?):\s*|:(?:returns?|yields?):\s*")
_DROPPED_FIELD = re.compile(r":(?:type|rtype|raises?)\b")
_ARGUMENT_TYPE = re.compile(r"^(\*{0,2}\w+)\s*\(.*\)\s*:\s*")
_ROLE = re.compile(r":[\w:+-]+:`(?:[^`<]*<)?[~!]?(?:[^`>]*?\.)??([^`.<>]+(?:\(\))?)>?`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)|`([^`<]+?)\s*<[^>`]*>`_*|https?://\S+")
_MARKUP = re.compile(r"[`*|]+|(?<=\w)_(?=\s|$)|<[^>]{1,40}>|\[\d+\]_?|[\ud800-\udfff]")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Pair(NamedTuple):
    """One example: `heading` is, for instance, "function read csv (path, sep)"."""

    heading: str
    body: str
    summary: str

    @property
    def document(self) -> str:
        """The text to summarise: heading and body."""
        return f"{self.heading}: {self.body}"


def python_files(root: Path) -> Iterator[Path]:
    """Yields the `*.py` files under `root` in a fixed order, without tests and vendored packages."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def pairs_of_file(path: Path) -> tuple[list[Pair], Counter]:
    """Reads the good pairs of one Python file, which is parsed and never imported.

    Returns:
        The pairs in the order of the file, and how many files or docstrings each rule dropped.
    """
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    try:
        source = path.read_bytes()
        # Parsing is nearly all of the run time, and generated files repeat the docstrings they are generated from.
        if not (b'"""' in source or b"'''" in source) or b"automatically generated" in source[:1000]:
            return pairs, dropped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        module = path.parent.name if path.stem == "__init__" else path.stem
        documented: list[tuple[str, ast.Module | _Definition]] = [(f"module {_words(module)}", tree)]
        documented += [(_heading(node, owner), node) for node, owner in _definitions(tree)]
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return pairs, Counter({"unreadable file": 1})
    for heading, node in documented:
        if docstring := ast.get_docstring(node):
            summary, body = split_docstring(docstring)
            pair = Pair(heading, body, summary)
            if problem := _problem(pair):
                dropped[problem] += 1
            else:
                pairs.append(pair)
    return pairs, dropped


def split_docstring(docstring: str) -> tuple[str, str]:
    """Splits a docstring into its first sentence, without the full stop, and the rest, both as plain text.

    Markup, code, doctests and section headings are removed; the body is cut at a line end to `MAX_BODY_WORDS` words.
    """
    opening, _, rest = docstring.partition("\n\n")
    if end := _SENTENCE_END.search(opening):
        opening, rest = opening[: end.start()], f"{opening[end.end() :].lstrip()}\n\n{rest}"
    return _plain(opening), _plain_body(rest)


def gather_pairs(
    roots: Iterable[Path] | None = None,
    max_train_samples: int | None = 25_000,
    eval_samples: int = 500,
    num_workers: int | None = None,
) -> tuple[dict[str, list[dict[str, str]]], Counter]:
    """Makes train, validation and test sets of {"document", "summary"} from the Python files under some folders.

    The same files give the same sets, in the same order, wherever the folders are.

    Args:
        roots: Folders to search; default the installed packages and the standard library of this Python.
        max_train_samples: Most pairs in the training set; None is all of them.
        eval_samples: Most pairs in each of the validation and test sets, which never exceed a tenth of the groups of
            similar pairs.
        num_workers: Processes that parse files; default one for each core.

    Returns:
        The three sets by name, and the number of files or docstrings that each rule dropped.

    Raises:
        ValueError: If the folders hold no usable docstring, or a number of samples is negative.
    """
    if eval_samples < 0 or (max_train_samples or 0) < 0:
        raise ValueError(
            f"eval_samples ({eval_samples}) and max_train_samples ({max_train_samples}) count pairs: give 0 or more"
        )
    if roots is None:
        paths = sysconfig.get_paths()
        roots = dict.fromkeys(Path(paths[name]).resolve() for name in ("purelib", "platlib", "stdlib"))
    roots = list(roots)
    pairs, dropped = _read(list(chain.from_iterable(map(python_files, roots))), num_workers or os.cpu_count() or 1)
    if not pairs:
        folders = ", ".join(map(str, roots))
        raise ValueError(
            f"no usable docstring under {folders or 'no folder'}: name folders with documented *.py files"
        )
    groups = _similar(_without_repeats(pairs, dropped))
    size = min(eval_samples, len(groups) // 10)
    # One pair of each group: a held-out set of near copies would measure one text many times over.
    held_out = [group[0] for group in groups[: 2 * size]]
    dropped["similar to a held-out pair"] += sum(len(group) - 1 for group in groups[: 2 * size])
    train = sorted(chain.from_iterable(groups[2 * size :]), key=_digest)
    if max_train_samples is not None:
        dropped["over max_train_samples"] += len(train[max_train_samples:])
    splits = {"train": train[:max_train_samples], "validation": held_out[:size], "test": held_out[size:]}
    return {
        name: [{"document": pair.document, "summary": pair.summary} for pair in split]
        for name, split in splits.items()
    }, +dropped


def _read(files: list[Path], num_workers: int) -> tuple[list[Pair], Counter]:
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()

    def collect(results: Iterable[tuple[list[Pair], Counter]]) -> None:
        for found, problems in tqdm(results, total=len(files), desc="Reading docstrings", unit="file"):
            pairs.extend(found)
            dropped.update(problems)

    if num_workers == 1:
        collect(map(pairs_of_file, files))
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            collect(pool.map(pairs_of_file, files, chunksize=32))
    return pairs, dropped


def _without_repeats(pairs: Iterable[Pair], dropped: Counter) -> list[Pair]:
    """Drops equal pairs and the surplus of frequent summaries and bodies, in an order that favours no package."""
    kept: dict[tuple[str, str], Pair] = {}
    summaries: Counter[str] = Counter()
    bodies: Counter[str] = Counter()
    for pair in sorted(pairs, key=_digest):
        summary, body = _normal(pair.summary), _normal(pair.body)
        if (summary, body) in kept:
            dropped["duplicate"] += 1
        elif summaries[summary] == MAX_REPEATS or bodies[body] == MAX_REPEATS:
            dropped["frequent summary or body"] += 1
        else:
            kept[summary, body] = pair
            summaries[summary] += 1
            bodies[body] += 1
    return list(kept.values())


def _similar(pairs: list[Pair]) -> list[list[Pair]]:
    """Groups the pairs that are linked, directly or through others, by an equal heading, summary or body opening."""
    parents = list(range(len(pairs)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    first_with: dict[tuple, int] = {}
    for index, pair in enumerate(pairs):
        opening = tuple(_normal(pair.body).split()[:OPENING_WORDS])
        for key in (("heading", pair.heading), ("summary", _normal(pair.summary)), ("opening", opening)):
            parents[root(index)] = root(first_with.setdefault(key, index))
    groups: dict[int, list[Pair]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(root(index), []).append(pair)
    return list(groups.values())


def _definitions(node: ast.AST, owner: str = "") -> Iterator[tuple[_Definition, str]]:
    """Yields the classes, methods and functions outside function bodies, each with the name of its class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child, owner
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child, child.name)
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(child, owner)


def _heading(node: _Definition, owner: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {_words(node.name)}"
    kind = f"method {_words(owner)}" if owner else "function"
    arguments = [argument.arg for argument in chain(node.args.posonlyargs, node.args.args, node.args.kwonlyargs)]
    named = [_words(argument) for argument in arguments if argument not in ("self", "cls")][:MAX_ARGUMENTS]
    return f"{kind} {_words(node.name)} ({', '.join(named)})"


def _words(name: str) -> str:
    """Spells an identifier as words: "read_csv" is "read csv", "JSONDecoder" is "JSON Decoder"."""
    return _CAMEL_CASE.sub(" ", name.replace("_", " ")).strip()


def _plain(text: str) -> str:
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(lambda link: link[1] or link[2] or "", text)
    return " ".join(_MARKUP.sub("", text).split())


def _plain_body(text: str) -> str:
    kept: list[str] = []
    words = 0
    for line in _prose_lines(text):
        line = _plain(_ARGUMENT_TYPE.sub(r"\1: ", _FIELD.sub(lambda field: f"{field[1]}: " if field[1] else "", line)))
        words += len(line.split())
        if words > MAX_BODY_WORDS:
            break
        kept.append(line)
    return " ".join(filter(None, kept))


def _prose_lines(text: str) -> Iterator[str]:
    """Yields the stripped lines that are neither code nor headings, up to the first section of cross-references."""
    code_indent = None
    in_fence = in_doctest = False
    for line, following in pairwise([*text.splitlines(), ""]):
        stripped, next_stripped = line.strip(), following.strip()
        indent = len(line) - len(line.lstrip())
        is_fence = stripped.startswith("```")
        in_fence ^= is_fence
        in_doctest = bool(stripped) and (in_doctest or stripped.startswith(">>>"))
        if code_indent is not None and stripped and indent <= code_indent:
            code_indent = None
        if not stripped or is_fence or in_fence or in_doctest or code_indent is not None:
            continue
        if _LAST_SECTION.fullmatch(stripped):
            return
        if any(pattern.match(stripped) for pattern in (_CODE_DIRECTIVE, _DROPPED_FIELD, _EXAMPLE)):
            code_indent = indent
        elif _HEADING.fullmatch(stripped) or _UNDERLINE.fullmatch(stripped) or _UNDERLINE.fullmatch(next_stripped):
            continue
        elif stripped.endswith("::") and not stripped.startswith(".. "):
            code_indent = indent
            yield stripped[:-1]
        else:
            yield _DIRECTIVE.sub("", stripped)


def _problem(pair: Pair) -> str | None:
    """Names the rule that drops a pair, if any."""
    _, body, summary = pair
    if len(body.split()) < MIN_BODY_WORDS:
        return "short body"
    if len(summary.split()) not in SUMMARY_WORDS:
        return "summary length"
    if not summary[0].isupper() or ":" in summary or summary[-1] in ",;-=":
        return "summary is no sentence"
    if _letter_share(summary) < 0.9 or _letter_share(body) < 0.85 or re.search(r"->|%\(|\w\(\w", summary):
        return "not plain text"
    if "copyright" in f"{summary} {body}".lower():
        return "licence"
    if _coverage(pair) < MIN_COVERAGE:
        return "summary of other words"
    return None


def _coverage(pair: Pair) -> float:
    """Share of the summary's words that occur in the document."""
    summary, document = _normal(pair.summary).split(), set(_normal(pair.document).split())
    return sum(word in document for word in summary) / max(len(summary), 1)


def _letter_share(text: str) -> float:
    return sum(character.isascii() and (character.isalpha() or character == " ") for character in text) / len(text)


def _normal(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _digest(pair: Pair) -> bytes:
    return hashlib.sha256(repr(pair).encode()).digest()


@dataclass
class GatherArguments:
    """Where to read, what to keep and where to write."""

    output_dir: str = field(
        default="data/docstrings",
        metadata={"help": "Folder for train.jsonl, validation.jsonl and test.jsonl, with the keys document, summary."},
    )
    roots: list[str] | None = field(
        default=None,
        metadata={"help": "Folders with Python files; default the installed packages and the standard library."},
    )
    max_train_samples: int = field(default=25_000, metadata={"help": "Most pairs in the training file."})
    eval_samples: int = field(default=500, metadata={"help": "Most pairs in each of the other two files."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that parse files; default one for each core."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files that are already there."})


def write_json_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes one JSON object per line; an interrupted run leaves no half-written `path` behind."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(partial, path)


def main(args: list[str] | None = None) -> None:
    """Runs the program; `args` instead of the process's own arguments."""
    (options,) = parse_arguments(GatherArguments, description=__doc__, args=args)
    output_dir = Path(options.output_dir)
    files = {split: output_dir / f"{split}.jsonl" for split in ("train", "validation", "test")}
    if (existing := [str(file) for file in files.values() if file.exists()]) and not options.overwrite:
        print(f"Already there: {', '.join(existing)}. Nothing written; --overwrite replaces them.")
        return

    splits, dropped = gather_pairs(
        roots=[Path(root) for root in options.roots] if options.roots else None,
        max_train_samples=options.max_train_samples,
        eval_samples=options.eval_samples,
        num_workers=options.num_workers,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    for split, file in files.items():
        write_json_lines(file, splits[split])
        print(f"{len(splits[split]):>7,} pairs in {file}")
    for rule, count in dropped.most_common():
        print(f"{count:>7,} dropped: {rule}")
    for pair in splits["train"][:3]:
        print(f"\ndocument: {pair['document']}\nsummary:  {pair['summary']}")


if __name__ == "__main__":
    main()
