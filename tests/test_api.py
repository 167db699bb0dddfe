"""What the package promises in its docstrings, and the page made of them."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import bidir_seq2seq

ROOT = Path(__file__).parents[1]
DOCS = runpy.run_path(str(ROOT / "scripts" / "write_api_docs.py"))
MODULES = {
    name: importlib.import_module(f"bidir_seq2seq.{name}")
    for _, name, _ in pkgutil.iter_modules(bidir_seq2seq.__path__)
}
# What the package and its scripts use and users do not.
INTERNAL_MODULES = {
    "__main__",
    "manifest",
    "run_folder",
    "sampler",
    "arguments",
    "charset",
    "demo",
    "plots",
    "source_words",
    "commands",
    "extras",
    "files",
    "tables",
    "title_file",
    "cache_bidir_seq2seq",
    "loss_bidir_seq2seq",
    "search_bidir_seq2seq",
    "splices_bidir_seq2seq",
    "kernels_bidir_seq2seq",
    "steps_bidir_seq2seq",
    "directions_bidir_seq2seq",
    "encoders_bidir_seq2seq",
    "output_bidir_seq2seq",
    "partner_bidir_seq2seq",
    "proposals_bidir_seq2seq",
    "samples_bidir_seq2seq",
    "version",
}

SHAPE = re.compile(r"`\[[\w .,*+-]+\]`")
REFERENCE = re.compile(r"\[`([\w.]+)`\]")


def public_classes(module):
    return [
        member
        for name, member in vars(module).items()
        if inspect.isclass(member) and member.__module__ == module.__name__ and not name.startswith("_")
    ]


def public_functions(module):
    """Every public function and method of a module that is written by hand, with the class it belongs to, if any."""
    for name, member in vars(module).items():
        if inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_"):
            yield member, None
    for owner in public_classes(module):
        for name, member in vars(owner).items():
            function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
            is_ours = inspect.isfunction(function) and function.__code__.co_filename == module.__file__
            if is_ours and (not name.startswith("_") or name in ("__init__", "__post_init__", "__call__")):
                yield function, owner


FUNCTIONS = [pytest.param(*found, id=found[0].__qualname__) for m in MODULES.values() for found in public_functions(m)]


def own_docstring(owner: type) -> str:
    """Neither inherited nor the signature that a dataclass without docstring gets."""
    docstring = vars(owner).get("__doc__") or ""
    return "" if docstring.startswith(f"{owner.__name__}(") else docstring


def documentation(function, owner) -> str:
    """A constructor is documented on its class; a method may lean on the class."""
    own = "" if function.__name__ in ("__init__", "__post_init__") else function.__doc__
    return f"{own or ''}\n{(owner and owner.__doc__) or ''}"


def documented_arguments(docstring: str, module) -> set[str]:
    """Names in the Args and Attributes of a docstring, and of those that it refers to."""
    text, sections = DOCS["split_docstring"](docstring)
    names = set()
    for section in ("Args", "Attributes"):
        names |= {name for item in DOCS["section_items"](sections.get(section, "")) for name in item[0]}
    for reference in REFERENCE.findall(text):
        target = module
        for part in reference.split("."):
            target = getattr(target, part, None)
        if inspect.isfunction(target):
            names |= documented_arguments(target.__doc__, module)
    return names


@functools.cache
def names_imported_from_modules() -> dict[str, set[str]]:
    """For each module what the other modules and the scripts import from it."""
    imported = {name: set() for name in MODULES}
    for path in (path for folder in ("src", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = node.module if node.level else node.module.removeprefix("bidir_seq2seq.")
                imported.get(module, set()).update(alias.name for alias in node.names)
    return imported


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_what_a_module_offers(name):
    module = MODULES[name]
    offered = {
        node.name
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    offered |= names_imported_from_modules()[name]
    listed = getattr(module, "__all__", [])
    assert offered - set(listed) == set()
    assert [name for name in listed if name not in vars(module)] == []
    assert len(set(listed)) == len(listed)


def test_the_package_exports_what_is_there():
    assert [name for name in bidir_seq2seq.__all__ if not hasattr(bidir_seq2seq, name)] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_class_says_what_it_is(name):
    bare = [owner.__name__ for owner in public_classes(MODULES[name]) if not own_docstring(owner)]
    assert MODULES[name].__doc__ and bare == []


@pytest.mark.parametrize(("function", "owner"), FUNCTIONS)
def test_every_function_keeps_its_promises(function, owner):
    docstring = documentation(function, owner)
    assert docstring.strip(), "has no docstring"
    annotations = [str(annotation) for annotation in function.__annotations__.values()]
    if any("Tensor" in annotation for annotation in annotations):
        assert SHAPE.search(docstring), "takes or gives tensors and states no shape such as `[B, T]`"

    node = ast.parse(inspect.cleandoc(f"\n{inspect.getsource(function)}")).body[0]
    raised = {
        raising.exc.func.id
        for raising in ast.walk(node)
        if isinstance(raising, ast.Raise) and isinstance(getattr(raising.exc, "func", None), ast.Name)
    }
    raises = DOCS["split_docstring"](function.__doc__ or "")[1].get("Raises", "")
    raises += DOCS["split_docstring"]((owner and owner.__doc__) or "")[1].get("Raises", "")
    assert {error for error in raised if error not in raises} == set(), "raises what its docstring does not say"


@pytest.mark.parametrize(("function", "owner"), FUNCTIONS)
def test_arguments_are_all_described_or_none_is(function, owner):
    is_constructor = function.__name__ in ("__init__", "__post_init__")
    docstring = (owner.__doc__ if is_constructor else function.__doc__) or ""
    if "\nArgs:" not in inspect.cleandoc(docstring):
        return
    parameters = inspect.signature(function).parameters.values()
    variadic = {p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    named = {p.name for p in parameters} - variadic - {"self", "cls"}
    described = documented_arguments(docstring, inspect.getmodule(function))
    if is_constructor:
        # A class may also say what it holds.
        attributes = DOCS["section_items"](DOCS["split_docstring"](docstring)[1].get("Attributes", ""))
        described -= {name for item in attributes for name in item[0]} - named
    assert named - described == set()
    assert variadic or described - named == set()


@pytest.mark.parametrize("name", MODULES)
def test_fields_of_a_dataclass_are_described(name):
    for owner in public_classes(MODULES[name]):
        fields = getattr(owner, "__dataclass_fields__", None)
        if fields is None:
            continue
        inherited = {field for base in owner.__mro__[1:] for field in getattr(base, "__dataclass_fields__", {})}
        helped = {field for field in fields if "help" in fields[field].metadata}
        described = documented_arguments(own_docstring(owner), MODULES[name])
        assert set(fields) - inherited - helped - described == set(), owner.__name__
        assert described - set(fields) == set(), owner.__name__


def test_the_page_is_up_to_date():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert page == DOCS["render"](), "run python scripts/write_api_docs.py"


def test_the_page_shows_every_module_and_every_export():
    shown = {module: names.split() for _, modules in DOCS["PAGE"].values() for module, names in modules.items()}
    assert set(shown) == set(MODULES) - INTERNAL_MODULES
    for module, names in shown.items():
        assert set(names) <= set(MODULES[module].__all__), module
    exported = {name for name in bidir_seq2seq.__all__ if not name.startswith("__")}
    assert exported - {name for names in shown.values() for name in names} == set()


def test_the_page_links_to_headings_that_are_there():
    page = DOCS["render"]()
    headings = {re.sub(r"[^\w -]", "", h).lower() for h in re.findall(r"^#+ (.*)$", page, re.MULTILINE)}
    links = re.findall(r"\]\(#(.*?)\)", page)
    assert len(links) > 40 and set(links) <= headings
