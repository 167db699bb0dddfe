"""Writes docs/api.md, the page of the public API, from the docstrings.

    python scripts/write_api_docs.py

Groups, introductions and order stand in PAGE below; a new module is one line there.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import ModelOutput

PACKAGE = "bidir_seq2seq"
PATH = Path(__file__).parents[1] / "docs" / "api.md"

INTRODUCTION = """\
# API

Importing `bidir_seq2seq` registers the model with `AutoConfig`, `AutoModel` and `AutoModelForSeq2SeqLM`, and the task
`"bidir-seq2seq"` with `pipeline`. What is not named here works as transformers' own documentation says. Wrong
arguments raise a `ValueError` whose message names the value and the remedy.

Letters in shapes: B documents, S source length, T target length, V vocabulary, E embedding size, H hidden size,
N attention heads, K beams per direction, R rows (hypotheses of one document stand together), L length of a title with
its start id.

Made from the docstrings by `scripts/write_api_docs.py`.
"""

# For each group its introduction, and for each module the names to show, in order.
PAGE = {
    "Configure": (
        "The settings of a model, checked when they are made.",
        {"configuration_bidir_seq2seq": "BidirSeq2SeqConfig"},
    ),
    "Build": (
        "A model from a config, and a tokenizer from texts. `AutoModelForSeq2SeqLM.from_pretrained` and "
        "`AutoTokenizer.from_pretrained` load them again, `load_model_and_tokenizer` with more care.",
        {
            "modeling_bidir_seq2seq": "BidirSeq2SeqForConditionalGeneration BidirSeq2SeqModel "
            "BidirSeq2SeqPreTrainedModel BidirSeq2SeqLMOutput BidirSeq2SeqModelOutput BidirSeq2SeqEncoderOutput",
            "tokenization": "build_char_tokenizer build_bpe_tokenizer build_word_tokenizer",
            "loading": "load_model_and_tokenizer",
        },
    ),
    "Train": (
        "From files of pairs to a trained model; or use the parts with transformers' own `Trainer` and "
        "`DataCollatorForSeq2Seq`.",
        {
            "training": "train",
            "training_arguments": "ModelArguments DataArguments TrainingArguments",
            "trainer": "TitleTrainer",
            "callbacks": "StopSignalCallback",
            "ending": "OwnPartnerCallback PatienceCallback TimeLimitCallback Pace",
            "trial": "try_out",
            "consistency": "read_twice Consistency divergence",
            "teachers": "load_teachers TeacherInputs Taught soft_cross_entropy",
            "sequence_training": "RiskInputs Risk rouge_cost chrf_cost edit_cost BeamInputs BeamMargin rivals Rival",
            "unknown_words": "TitleCollator extend_ids decode",
            "data": "load_pairs encode_pairs PairEncoder EncodingReport",
            "streaming": "open_stream PairStream StreamCollator",
            "pair_summary": "summarize_pairs PairSummary taken_share",
            "pair_memory": "PairMemory",
            "recipe": "suitable_tokenizer_type suitable_vocabulary suitable_width suitable_directions "
            "suitable_dropout",
            "allocator": "keep_freed_memory",
        },
    ),
    "Generate": (
        "`model.generate` takes all arguments of transformers' own, and the flags below.",
        {
            "generation_bidir_seq2seq": "BidirSeq2SeqGenerationMixin BidirBeamSearchOutput",
            "titles": "write_titles stream_titles Title",
            "ranking_bidir_seq2seq": "Candidates own joint consensus weighted",
            "rank_tuning": "write_candidates tune_ranking CandidatePool TunedRanking",
            "search_history": "search_history SearchHistory",
        },
    ),
    "Pipeline": ("Documents in, titles out.", {"pipeline": "BidirSeq2SeqPipeline"}),
    "Score": (
        "How good titles are, and whether two systems differ.",
        {
            "metrics": "TitleScore pair_scores bleu_counts paired_bootstrap BootstrapResult lead_baseline",
            "evaluation": "available_systems predict score format_table",
            "diagnosis": "diagnose twin_log_probs answer_leaks",
            "report": "write_report",
        },
    ),
    "Share": (
        "To the Hub, and from checkpoints of the original Keras programs.",
        {"hub": "save_for_hub push_to_hub create_model_card", "keras_checkpoints": "convert_reference_checkpoint"},
    ),
}

# Methods that transformers or other modules call, and users do not.
HOOKS = (
    "init_generation_defaults direction_decoder start_steps words directions get_iterator preprocess postprocess "
    "evaluation_loop prediction_step write_alone on_train_begin on_step_begin on_evaluate state"
)

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?: +.*\n|\n)+)", re.MULTILINE)
_ITEM = re.compile(r"^([\w*][\w, *]*?)(?: \((.*?)\))?: (.*(?:\n +.*)*)", re.MULTILINE)


def main():
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")


def split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and its sections by name, without indentation."""
    docstring = inspect.cleandoc(docstring) + "\n"
    sections = {name: inspect.cleandoc(f"\n{content}") for name, content in _SECTION.findall(docstring)}
    return _SECTION.sub("", docstring).strip(), sections


def section_items(section: str) -> list[tuple[list[str], str, str]]:
    """The entries of a section: names, type (may be empty) and text."""
    return [(re.findall(r"\w+", names), kind, text) for names, kind, text in _ITEM.findall(section)]


def render() -> str:
    package = importlib.import_module(PACKAGE)
    blocks = [INTRODUCTION]
    for group, (_, modules) in PAGE.items():
        names = [f"[`{name}`]" for names in modules.values() for name in names.split()]
        blocks.append(f"* [{group}](#{group.lower()}): {', '.join(names)}")
    blocks.append("")
    for group, (introduction, modules) in PAGE.items():
        blocks += [f"## {group}\n", f"{introduction}\n"]
        for module_name, names in modules.items():
            module = importlib.import_module(f"{PACKAGE}.{module_name}")
            for name in names.split():
                member = getattr(module, name)
                shortest = PACKAGE if name in package.__all__ else module.__name__
                blocks += [f"### `{name}`\n", f"`from {shortest} import {name}`\n"]
                blocks += _class(name, member) if inspect.isclass(member) else _function(name, member)
    page = "\n".join(blocks)
    anchors = {name: re.sub(r"\W", "", name).lower() for name in re.findall(r"^#{3,4} `(.*)`$", page, re.MULTILINE)}

    def link(found: re.Match) -> str:
        return f"{found[0]}(#{anchors[found[1]]})" if found[1] in anchors else f"`{found[1]}`"

    return re.sub(r"\[`([\w.]+)`\]", link, page)


def _function(name: str, function) -> Iterator[str]:
    signature = inspect.signature(function)
    yield _code(name, list(signature.parameters.values()), signature.return_annotation)
    yield _markdown(function.__doc__)


def _class(name: str, owner: type) -> Iterator[str]:
    # Of a dataclass only what it adds to its base is shown.
    own_fields = [field for field in getattr(owner, "__dataclass_fields__", {}).values() if _is_own(owner, field.name)]
    helped = [field for field in own_fields if "help" in field.metadata]
    if "__init__" in vars(owner) and not helped and not issubclass(owner, ModelOutput):
        parameters = inspect.signature(owner).parameters.values()
        yield _code(name, [p for p in parameters if not own_fields or _is_own(owner, p.name)])
    yield _markdown(owner.__doc__)
    if helped:
        yield "| argument | default | |\n|---|---|---|"
        yield "\n".join(f"| `{f.name}` | {_default(f)} | {f.metadata['help']} |" for f in helped) + "\n"
    for method_name in vars(owner):
        method = getattr(owner, method_name)
        if (
            inspect.isroutine(method)
            and callable(method)
            and method.__doc__
            and _is_worth_showing(owner, method_name, method.__doc__)
        ):
            yield f"#### `{name}.{method_name}`\n"
            yield from _function(method_name, method)


def _is_own(owner: type, field: str) -> bool:
    return field in vars(owner).get("__annotations__", {})


def _is_worth_showing(owner: type, name: str, docstring: str) -> bool:
    if name in HOOKS.split() or (name.startswith("_") and name != "__call__"):
        return False
    # One line about a method that every model of transformers has says nothing new.
    is_stock = any(hasattr(base, name) for base in owner.__mro__ if not base.__module__.startswith(PACKAGE))
    return "\n" in docstring or not is_stock


def _default(field: dataclasses.Field) -> str:
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


class _Bare(str):
    """An annotation that is shown without quotes."""

    __repr__ = str.__str__


def _bare(annotation):
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _Bare(re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", text))


def _code(name: str, parameters: list[inspect.Parameter], returns=inspect.Parameter.empty) -> str:
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in parameters if p.name != "self"]
    call = f"{name}{inspect.Signature(parameters, return_annotation=_bare(returns))}"
    if len(call) > 100:
        lines = [str(p) for p in parameters]
        kinds = [p.kind for p in parameters]
        if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
            lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
        arrow = "" if returns is inspect.Parameter.empty else f" -> {_bare(returns)}"
        call = "\n".join([f"{name}(", *(f"    {line}," for line in lines), f"){arrow}"])
    return f"```python\n{call}\n```\n"


def _markdown(docstring: str) -> str:
    text, sections = split_docstring(docstring)
    blocks = [text]
    for name, section in sections.items():
        if name == "Returns":
            blocks.append(f"**Returns** {section}")
            continue
        blocks.append(f"**{'Arguments' if name == 'Args' else name}**")
        blocks.append(
            "\n".join(
                f"- {', '.join(f'`{name}`' for name in names)}{f' ({kind})' if kind else ''}: "
                # Markdown wants the indentation of the bullet, not of the docstring.
                + re.sub(r"\n +", "\n  ", text)
                for names, kind, text in section_items(section)
            )
        )
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    main()
