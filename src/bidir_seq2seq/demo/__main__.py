"""Opens the demo of a trained model in the browser, or writes it as a Space or a picture.

python -m bidir_seq2seq.demo my_model
python -m bidir_seq2seq.demo my_model --export_space my_space
python -m bidir_seq2seq.demo my_model --make_animation search.svg --text "The text to write about."
"""

import argparse
import json
from pathlib import Path

from ..allocator import keep_freed_memory
from ..commands.cli import errors_in_a_line
from .writer import DemoWriter

EXAMPLES = 4


def main(argv: list[str] | None = None) -> None:
    """Runs the command; `argv` instead of the process's own arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m bidir_seq2seq.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="Folder of a trained model.")
    parser.add_argument("--text", help="A text: the first example, or what an animation is of.")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="The language it opens in.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in. Default: this one only.")
    parser.add_argument("--port", type=int, help="Default: the first free one from 7860 on.")
    parser.add_argument("--export_space", metavar="DIR", help="Write a Hugging Face Space instead.")
    parser.add_argument("--make_animation", metavar="FILE.svg", help="Write an animated picture of a search instead.")
    args = parser.parse_args(argv)
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ValueError(f"port={args.port} must be a whole number of 1 to 65535, or leave it out")
    examples = [*([args.text] if args.text else []), *example_texts(Path(args.model_dir))]
    if args.export_space:
        from .space import export_space

        files = export_space(args.model_dir, args.export_space, examples, args.language)
        print(f"Space: {args.export_space}, {len(files)} files; its README.md says how to upload it")
        return
    keep_freed_memory()
    writer = DemoWriter.from_folder(args.model_dir)
    if args.make_animation:
        from .picture import animated_svg

        if not examples:
            raise ValueError("there is nothing to write about: give --text")
        search = writer.write(examples[0]).search
        if search is None:
            raise ValueError(
                "there is no search to show: the model has no two writers that read each other, or the text is empty"
            )
        Path(args.make_animation).write_text(animated_svg(search), encoding="utf-8")
        print(f"Animation: {args.make_animation}")
        return
    from .app import build_app, launch

    launch(build_app(writer, examples, args.language), server_name=args.host, server_port=args.port)


def example_texts(model_dir: Path) -> list[str]:
    """Texts that the model was scored on, if they are there."""
    for path in (model_dir / "scores" / "pairs.jsonl", model_dir.parent / "scores" / "pairs.jsonl"):
        if path.exists():
            with open(path, encoding="utf-8") as file:
                return [json.loads(line)["source"] for _, line in zip(range(EXAMPLES), file)]
    return []


if __name__ == "__main__":
    with errors_in_a_line():
        main()
