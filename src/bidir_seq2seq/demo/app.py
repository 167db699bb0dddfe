"""The page itself, made with Gradio."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

from ..extras import extra
from .animation import animation_frame
from .words import LANGUAGES, WORDS
from .writer import DemoWriter, Result

with extra("demo"):
    import gradio as gr
    import jinja2

logger = logging.get_logger(__name__)

STYLE = """
.gradio-container, .gradio-container main { width: 100%; max-width: 1080px !important; margin: 0 auto !important; }
.bidir-titles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 230px), 1fr)); }
.bidir-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px 14px; min-width: 0;
  border-top: 3px solid var(--border-color-primary); background: var(--background-fill-primary); }
.bidir-card.l2r { border-top-color: #2f86cf; } .bidir-card.r2l { border-top-color: #d9741f; }
.bidir-card.both { border-top-color: #159a73; } .bidir-card.default { border-top-color: #9b51b8; }
.bidir-card h3 { font-size: 13px; font-weight: 600; margin: 0 0 4px;
  display: flex; justify-content: space-between; gap: 8px; }
.bidir-card h3 span, .bidir-score { opacity: 0.75; font-weight: 400; font-size: 12px; white-space: nowrap; }
.bidir-title { font-size: 17px; line-height: 1.4; margin: 0; overflow-wrap: anywhere; }
.bidir-card details { font-size: 14px; margin-top: 6px; } .bidir-card summary { cursor: pointer; }
.bidir-card ol { margin: 4px 0 0; padding-left: 22px; } .bidir-card li { overflow-wrap: anywhere; }
.bidir-notice { border-left: 3px solid #d9a21f; padding: 4px 10px; margin: 0 0 10px; }
/* What stands side by side on a wide screen is higher on a narrow one. */
@media (max-width: 600px) { #animation iframe { min-height: 860px; } }
"""

_TITLES = jinja2.Environment(loader=jinja2.PackageLoader(__package__, ""), autoescape=True).get_template("titles.html")


def show_titles(result: Result, language: str) -> str:
    """The titles as HTML, in which all that a user or a model wrote is escaped."""
    return _TITLES.render(result=result, notices=result.notices, words=WORDS[language])


def show_animation(result: Result, language: str) -> str:
    """The animation's frame, or why there is none."""
    if result.search is not None:
        return animation_frame(result.search, language)
    return WORDS[language]["no_animation"] if result.written else ""


def build_app(writer: DemoWriter, examples: Sequence[str] = (), language: str = "en") -> gr.Blocks:
    """The page for a model.

    Args:
        writer: Writes the titles.
        examples: Texts that a visitor may take.
        language: The one it opens in, `"en"` or `"zh"`.

    Returns:
        An app to be opened with its `launch`, or with [`launch`].
    """
    words = WORDS[language]
    names = {code: name for name, code in LANGUAGES.items()}
    with gr.Blocks(title=words["title"], analytics_enabled=False, fill_width=True) as app:
        latest = gr.State(Result())
        heading = gr.Markdown(_heading(language))
        choice = gr.Radio(list(LANGUAGES), value=names[language], label=words["language"], elem_id="language")
        text = gr.Textbox(label=words["text"], placeholder=words["placeholder"], lines=4, max_lines=12, elem_id="text")
        button = gr.Button(words["write"], variant="primary", elem_id="write")
        shown = []
        if examples:
            shown.append(
                gr.Examples([[example] for example in examples], inputs=text, label=words["examples"]).dataset
            )
        titles = gr.HTML(elem_id="titles", padding=False)
        animation = gr.HTML(elem_id="animation", padding=False)

        def write(document: str, name: str) -> tuple[Result, str, str]:
            code = LANGUAGES[name]
            try:
                result = writer.write(document or "")
            except Exception:
                # A visitor gets no trace, and the next one is served.
                logger.exception("a text could not be written about")
                result = Result(notices=[("failed", {})])
            return result, show_titles(result, code), show_animation(result, code)

        def translate(result: Result, name: str) -> tuple[Any, ...]:
            code = LANGUAGES[name]
            said = WORDS[code]
            is_answered = result.written or result.notices
            return (
                _heading(code),
                gr.update(label=said["language"]),
                gr.update(label=said["text"], placeholder=said["placeholder"]),
                gr.update(value=said["write"]),
                show_titles(result, code) if is_answered else "",
                show_animation(result, code) if is_answered else "",
                *[gr.update(label=said["examples"]) for _ in shown],
            )

        outputs = [latest, titles, animation]
        button.click(write, [text, choice], outputs, concurrency_limit=1, api_name="write")
        text.submit(write, [text, choice], outputs, concurrency_limit=1, api_visibility="private")
        translated = [heading, choice, text, button, titles, animation, *shown]
        choice.change(translate, [latest, choice], translated, api_visibility="private")
    # Visitors beyond those that are served stand in line.
    return app.queue(max_size=200, default_concurrency_limit=1)


def _heading(language: str) -> str:
    return f"# {WORDS[language]['title']}\n\n{WORDS[language]['about']}"


def launch(app: gr.Blocks, **kwargs: Any) -> Any:
    """Opens the app in its own style, with no font or script of elsewhere, and for this machine unless told otherwise.

    Titles are written by one thread, unless `OMP_NUM_THREADS` says how many: a step of one title is too small to be
    shared, and threads that wait for each other take the processor that the page and other visitors need.

    Args:
        app: From [`build_app`].
        **kwargs: As for Gradio's own `launch`.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    fonts = ["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    settings = {"server_name": "127.0.0.1", "theme": theme, "css": STYLE, "footer_links": []}
    return app.launch(**{**settings, **kwargs})


__all__ = ["build_app", "launch", "show_animation", "show_titles"]
