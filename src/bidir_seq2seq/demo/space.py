"""A folder that is a Hugging Face Space: the page, the model, and this package with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

APP = '''"""The Space's page."""

import json
import os
from pathlib import Path

from bidir_seq2seq.demo.app import build_app, launch
from bidir_seq2seq.demo.writer import DemoWriter

HERE = Path(__file__).parent
EXAMPLES = json.loads((HERE / "examples.json").read_text(encoding="utf-8"))

if __name__ == "__main__":
    # A Space is reached from outside its machine.
    launch(
        build_app(DemoWriter.from_folder(HERE / "model"), EXAMPLES, {language!r}),
        server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    )
'''

README = """---
title: {title}
emoji: ↔️
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

A small model that writes titles from both ends at once, and shows how.

Upload this folder as it is: `hf upload user/name . --repo-type space`. The package `bidir_seq2seq` (Apache-2.0) stands
in it as source.
"""


def export_space(
    model_dir: str | Path, output_dir: str | Path, examples: Sequence[str] = (), language: str = "en"
) -> list[Path]:
    """Writes what a Space needs.

    Args:
        model_dir: Folder of a trained model.
        output_dir: Where to; it must be empty or not there yet.
        examples: Texts that a visitor may take.
        language: `"en"` or `"zh"`.

    Returns:
        All files.

    Raises:
        ValueError: If the output folder holds something, or the model's lacks a file.
    """
    model_dir, output_dir = Path(model_dir), Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder: name another one, so that nothing is overwritten")
    missing = [name for name in MODEL_FILES if not (model_dir / name).exists()]
    if missing:
        raise ValueError(f"{model_dir} has no {', '.join(missing)}: name the output_dir of train.py")
    (output_dir / "model").mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copy(model_dir / name, output_dir / "model" / name)
    shutil.copytree(PACKAGE, output_dir / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (output_dir / "app.py").write_text(APP.format(language=language), encoding="utf-8")
    (output_dir / "examples.json").write_text(json.dumps(list(examples), ensure_ascii=False, indent=2) + "\n", "utf-8")
    requirements = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers", "jinja2")]
    (output_dir / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    title = model_dir.resolve().name.replace("_", " ").replace(":", " ")
    readme = README.format(title=json.dumps(title, ensure_ascii=False), gradio=version("gradio"))
    (output_dir / "README.md").write_text(readme, encoding="utf-8")
    return sorted(path for path in output_dir.rglob("*") if path.is_file())


__all__ = ["export_space"]
