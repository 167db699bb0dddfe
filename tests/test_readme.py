import ast
import re
from pathlib import Path

import torch
from conftest import tiny_model

from bidir_seq2seq.tokenization import build_bpe_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    tokenizer = build_bpe_tokenizer(["read csv a file to read with a delimiter"] * 2, vocab_size=60)
    tokenizer.save_pretrained(tmp_path / "quickstart" / "model")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "quickstart" / "model")
    monkeypatch.chdir(tmp_path)
    pipe, load, make = EXAMPLES
    exec(pipe, {})
    first, second = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    assert [len(first), len(second)] == [3, 1] and second[0]["generated_text"] == ""
    assert len(load.strip().splitlines()) <= 12
    exec(load, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.split()[1] in ("l2r", "r2l") for line in lines)
    names = {}
    exec(make, names)
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert torch.isfinite(names["model"].lm_head.weight.grad).all()


def test_it_names_files_that_are_there():
    root = Path(__file__).parents[1]
    named = re.findall(r"(?:scripts|benchmarks)/[a-z_]+\.(?:py|yaml)", README)
    assert len(named) > 4
    assert [name for name in named if not (root / name).exists()] == []
    layout = re.findall(r"^  ([a-z0-9_]+\.py(?: [a-z0-9_]+\.py)*)", README, re.MULTILINE)
    for name in " ".join(layout).split():
        assert (root / "src" / "bidir_seq2seq" / name).exists(), name
