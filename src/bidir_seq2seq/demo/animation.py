"""The search as an animation: a page of its own that holds its data, and the frame in which it is shown."""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path

from ..search_history import SearchHistory
from .words import WORDS

PAGE = Path(__file__).with_name("animation.html")


def animation_page(search: SearchHistory, language: str = "en") -> str:
    """The whole page as HTML; it fetches nothing, and the texts in it are data only.

    Args:
        search: What to show.
        language: `"en"` or `"zh"`.
    """
    # A bonus that all words have alike tells nothing: those above the middle are marked.
    bonuses = [bonus for bonus in search.prior if bonus > 0]
    words = {**WORDS[language], "prior_from": statistics.median(bonuses) if bonuses else 0}
    data = json.dumps({"search": search.as_dict(), "words": words}, ensure_ascii=False)
    # Nothing in the data may end the element that holds it.
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return PAGE.read_text(encoding="utf-8").replace("__DATA__", data)


def animation_frame(search: SearchHistory, language: str = "en", height: int = 680) -> str:
    """A frame for another page; what is in it can reach nothing of that page.

    Args:
        search: What to show.
        language: `"en"` or `"zh"`.
        height: In pixels.
    """
    page = html.escape(animation_page(search, language), quote=True)
    title = html.escape(WORDS[language]["animation"], quote=True)
    style = f"width: 100%; height: {height}px; border: 0; border-radius: 10px;"
    return f'<iframe sandbox="allow-scripts" title="{title}" style="{style}" srcdoc="{page}"></iframe>'


__all__ = ["animation_frame", "animation_page"]
