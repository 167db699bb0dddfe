"""Whether transformers still has what our classes override, extend and call of its own, as our code would have it.

Most of it is private there, and a renamed method would fail silently: nobody calls the one that we have written any
more. The lists are read from our source, so that a new override is checked as soon as it is written.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from transformers import Cache, GenerationMixin

import bidir_seq2seq
from bidir_seq2seq.cache_bidir_seq2seq import CACHE_NAME
from bidir_seq2seq.generation_bidir_seq2seq import BidirSeq2SeqGenerationMixin

MODULES = [
    importlib.import_module(f"bidir_seq2seq.{name}")
    for _, name, _ in pkgutil.iter_modules(bidir_seq2seq.__path__)
    if name not in ("__main__", "commands")
]
SOURCES = {module: ast.parse(inspect.getsource(module)) for module in MODULES}
# A mixin overrides methods of a class beside it: the one that it is made for tells which.
MADE_FOR = {BidirSeq2SeqGenerationMixin: bidir_seq2seq.BidirSeq2SeqForConditionalGeneration}
# Public methods that transformers calls, and we do not: how they are called is as private as the others' names.
PUBLIC_HOOKS = {
    "BidirSeq2SeqPipeline": {"get_iterator", "preprocess", "postprocess"},
    "RecurrentStateLayer": {"update", "get_mask_sizes", "get_max_length", "reorder_cache"},
    "TitleTrainer": {"training_step", "evaluate", "evaluation_loop", "prediction_step", "log"},
    "EpochCallback": {"on_epoch_begin"},
    "MovableEndCallback": {"on_step_end"},
    "PatienceCallback": {"on_train_begin", "on_evaluate", "state"},
    "PunctualSaveCallback": {"on_train_begin", "on_step_end", "on_epoch_end"},
    "StopSignalCallback": {"on_step_end", "on_epoch_end"},
    "BidirSeq2SeqForConditionalGeneration": {"resize_token_embeddings", "get_encoder", "get_output_embeddings"},
}


class Method(NamedTuple):
    """A method of one of our classes, and its source."""

    owner: type
    node: ast.FunctionDef

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.node.name}"


def is_ours(owner: type) -> bool:
    return owner.__module__.partition(".")[0] == bidir_seq2seq.__name__


def methods() -> Iterator[Method]:
    """Those of our classes that extend transformers' ones."""
    for module, source in SOURCES.items():
        for node in (node for node in source.body if isinstance(node, ast.ClassDef)):
            owner = getattr(module, node.name)
            if any(base.__module__.startswith("transformers.") for base in _family(owner)):
                yield from (Method(owner, child) for child in node.body if isinstance(child, ast.FunctionDef))


def _family(owner: type) -> tuple[type, ...]:
    return MADE_FOR.get(owner, owner).__mro__


def inherited(owner: type, name: str):
    """What `name` would be without our classes; `None` if there is no such thing."""
    later = _family(owner)[_family(owner).index(owner) + 1 :]
    found = (vars(base)[name] for base in later if not is_ours(base) and base is not object and name in vars(base))
    return getattr(found := next(found, None), "__func__", found)


def attributes_of(node: ast.AST, of: str) -> set[str]:
    """Names that are read of `self`, say."""
    reads = (child for child in ast.walk(node) if isinstance(child, ast.Attribute))
    return {read.attr for read in reads if isinstance(read.value, ast.Name) and read.value.id == of}


def calls_of_super(node: ast.AST) -> Iterator[ast.Call]:
    for call in (child for child in ast.walk(node) if isinstance(child, ast.Call)):
        function = call.func
        if isinstance(function, ast.Attribute) and ast.unparse(function.value) == "super()":
            yield call


METHODS = list(methods())
USED_BY_US = {
    node.attr
    for source in SOURCES.values()
    for node in ast.walk(source)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "super()"
}
SUPER_CALLS = [(method, call) for method in METHODS for call in calls_of_super(method.node)]
OVERRIDES = [method for method in METHODS if inherited(method.owner, method.node.name) is not None]


def test_the_lists_are_not_empty():
    names = {str(method) for method in OVERRIDES}
    assert len(OVERRIDES) > 40 and len(SUPER_CALLS) > 15
    assert {"BidirSeq2SeqGenerationMixin._prepare_special_tokens", "BidirSeq2SeqPipeline._forward"} <= names


@pytest.mark.parametrize("method", [m for m in METHODS if m.node.name.startswith("_")], ids=str)
def test_a_private_method_that_we_never_call_is_a_hook_of_theirs(method):
    name = method.node.name
    if name in USED_BY_US or name.startswith("__") or inherited(method.owner, name) is not None:
        return
    pytest.fail(f"nobody calls {method}: has transformers renamed it?")


@pytest.mark.parametrize(("owner", "name"), [(o, name) for o, names in PUBLIC_HOOKS.items() for name in sorted(names)])
def test_a_public_hook_is_still_theirs(owner, name):
    (owner,) = {method.owner for method in METHODS if method.owner.__name__ == owner}
    assert inherited(owner, name) is not None


def test_the_past_has_the_name_and_the_methods_that_we_use():
    asked = {"activate_past_recording", "get_seq_length", "is_recording_past"}
    assert asked <= USED_BY_US and asked <= set(dir(Cache))
    assert CACHE_NAME in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_is_read_of_self_is_ours_or_theirs(method):
    """Private names only: those that an instance of ours has, or its class inherits."""
    written = {name for m in METHODS for name in attributes_of(m.node, "self") if m.owner is method.owner}
    private = {name for name in attributes_of(method.node, "self") if name.startswith("_")}
    assigned = {
        target.attr
        for m in METHODS
        for node in ast.walk(m.node)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store)
    }
    known = {name for owner in _family(method.owner) for name in vars(owner)}
    assert private & written - known - assigned == set()


@pytest.mark.parametrize(
    ("method", "call"), [pytest.param(*found, id=f"{found[0]}-{found[1].func.attr}") for found in SUPER_CALLS]
)
def test_what_is_passed_on_is_what_they_take(method, call):
    base = inherited(method.owner, call.func.attr)
    assert base is not None, f"{method} extends {call.func.attr}, which is gone"
    if call.func.attr == "__init__" or not inspect.isfunction(base):
        return
    parameters = inspect.signature(base)
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    given = [None] * sum(not isinstance(argument, ast.Starred) for argument in call.args)
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    is_open = starred or any(keyword.arg is None for keyword in call.keywords)
    receiver = [] if isinstance(inspect.getattr_static(method.owner, call.func.attr, None), staticmethod) else [None]
    # With * or ** in the call the rest comes from whoever called us.
    (parameters.bind_partial if is_open else parameters.bind)(*receiver, *given, **named)


@pytest.mark.parametrize("method", [m for m in OVERRIDES if not m.node.name.startswith("__")], ids=str)
def test_we_take_what_they_pass(method):
    """As many as they require, in their order or by name; ours may bear other names."""
    base = inspect.unwrap(inherited(method.owner, method.node.name))
    if not inspect.isfunction(base):
        return
    required = [p for p in inspect.signature(base).parameters.values() if p.default is p.empty]
    in_order = [None for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = {p.name: None for p in required if p.kind is p.KEYWORD_ONLY}
    ours = inspect.getattr_static(method.owner, method.node.name)
    inspect.signature(getattr(ours, "__func__", ours)).bind(*in_order, **by_name)
