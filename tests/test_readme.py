import ast
import re
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from bidir_seq2seq.tokenization import build_bpe_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = {
    path: path.read_text(encoding="utf-8") for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
}
README = PAGES[ROOT / "README.md"]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    tokenizer = build_bpe_tokenizer(["read csv a file to read with a delimiter"] * 2, vocab_size=60)
    tokenizer.save_pretrained(tmp_path / "quickstart" / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "quickstart" / "model")
    monkeypatch.chdir(tmp_path)
    pipe, make = EXAMPLES
    exec(pipe, {})
    first, second = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    assert [len(first), len(second)] == [3, 1] and second[0]["generated_text"] == ""
    names = {}
    exec(make, names)
    # The decoders learn alone first.
    missing = {name for name, parameter in names["model"].named_parameters() if parameter.grad is None}
    assert missing and all("twin_attention" in name for name in missing)
    assert torch.isfinite(names["model"].lm_head.weight.grad).all()


def test_it_is_short_enough_to_be_read():
    assert len(README.split()) <= 1400


def test_pages_name_files_that_are_there():
    named = {
        name
        for text in PAGES.values()
        for name in re.findall(r"(?:scripts|benchmarks|tests|examples)/\w+\.(?:py|yaml)", text)
    }
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[path])
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_tour_shows_every_module():
    tour = PAGES[ROOT / "docs" / "design.md"].split("## Top-down")[0]
    package = ROOT / "src" / "bidir_seq2seq"
    named = set(re.findall(r"`(?:commands/)?(\w+\.py)`", tour))
    assert named - {"cli.py"} == {path.name for path in package.glob("*.py")} - {"__init__.py", "version.py"}
    assert (package / "commands" / "cli.py").exists()
