"""The two best titles of a search growing towards each other, as a picture that moves and needs no script."""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape

from ..search_history import DIRECTIONS, SearchHistory

WIDTH, FONT, STEP_SECONDS, REST_SECONDS = 820, 20, 0.7, 2.5
SIGN, SPACE, ROW = 0.6 * FONT, 10, 58

STYLE = """
text { font: %dpx ui-monospace, 'DejaVu Sans Mono', 'Noto Sans Mono CJK SC', monospace; fill: #1f2328; }
.small { font-size: 13px; fill: #59636e; }
.l2r rect { fill: #dcecf9; stroke: #0b62a8; } .r2l rect { fill: #fbe6d6; stroke: #c1550a; }
.look { stroke: #8b949e; stroke-width: 1.5; fill: none; stroke-dasharray: 4 4; }
.page { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9aa4af; } .page { fill: #0f1318; }
  .l2r rect { fill: #12344f; stroke: #6cb6f5; } .r2l rect { fill: #4a2c13; stroke: #f5a45d; }
}
@media (prefers-reduced-motion: reduce) { .t { animation: none !important; } }
"""


def animated_svg(search: SearchHistory, labels: tuple[str, str] = ("left to right", "right to left")) -> str:
    """Both directions' best titles, token by token, with a line to what each looked at most of the other's.

    Args:
        search: What to show.
        labels: What the two lanes are called.

    Returns:
        An SVG, which browsers and code hosting sites show as an image. It plays again and again.
    """
    paths = {direction: search.best(direction) for direction in DIRECTIONS}
    boxes = {direction: _boxes(search, direction, path) for direction, path in paths.items()}
    ends = [box["end"] for row in boxes.values() for box in row]
    width = max([WIDTH, *(int(end) + 20 for end in ends)])
    steps = max((len(path) for path in paths.values()), default=0)
    seconds = steps * STEP_SECONDS + REST_SECONDS
    parts, frames = [], [_keyframes(step, seconds) for step in range(steps)]
    for row, (direction, label) in enumerate(zip(DIRECTIONS, labels)):
        y = 30 + row * (ROW + 46)
        anchor, x = ("start", 20) if direction == "l2r" else ("end", width - 20)
        arrow = f"{label} \u2192" if direction == "l2r" else f"\u2190 {label}"
        parts.append(f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{escape(arrow)}</text>')
        for step, box in enumerate(boxes[direction]):
            left = box["start"] if direction == "l2r" else width - box["end"]
            middle = left + (box["end"] - box["start"]) / 2
            box["middle"], box["y"] = middle, y + 12
            parts.append(
                f'<g class="t {direction}" style="animation: s{step} {seconds:.1f}s infinite">'
                f'<rect x="{left:.1f}" y="{y + 12}" width="{box["end"] - box["start"]:.1f}" height="36" rx="7"/>'
                f'<text x="{middle:.1f}" y="{y + 37}" text-anchor="middle">{escape(box["text"])}</text></g>'
            )
    parts += _looks(search, paths, boxes, seconds)
    height = 30 + 2 * ROW + 46 + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Two writers start at both ends of a title">'
        f"<style>{STYLE % FONT}{''.join(frames)}</style>"
        f'<rect class="page" width="{width}" height="{height}" rx="10"/>{"".join(parts)}</svg>\n'
    )


def _boxes(search: SearchHistory, direction: str, path: list[tuple[int, int]]) -> list[dict]:
    """For each token its text, and where it starts and ends, counted from where its direction starts."""
    boxes, place = [], 20.0
    for step, rank in path:
        choice = search.steps[direction][step][rank]
        text = (choice.text if choice is not None else "").strip() or "\u2423"
        size = sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text) * SIGN + 16
        boxes.append({"text": text, "start": place, "end": place + size})
        place += size + SPACE
    return boxes


def _looks(search: SearchHistory, paths: dict, boxes: dict, seconds: float) -> list[str]:
    """Lines from each token to the one of the other lane that it looked at most, where that is on the best path."""
    lines = []
    for direction, other in (DIRECTIONS, DIRECTIONS[::-1]):
        for step, (at, rank) in enumerate(paths[direction]):
            choice = search.steps[direction][at][rank]
            if choice is None or not choice.partner_tokens or choice.partner is None:
                continue
            target = max(choice.partner_tokens, key=lambda token: token[1])[0]
            if target >= len(boxes[other]) or paths[other][target] not in search.path(other, at - 1, choice.partner):
                continue
            a, b = boxes[direction][step], boxes[other][target]
            y0, y1 = (a["y"] + 36, b["y"]) if a["y"] < b["y"] else (a["y"], b["y"] + 36)
            lines.append(
                f'<path class="look t" style="animation: l{step} {seconds:.1f}s infinite" '
                f'd="M{a["middle"]:.1f} {y0}L{b["middle"]:.1f} {y1}"/>'
            )
    return lines


def _keyframes(step: int, seconds: float) -> str:
    shown = 100 * (step * STEP_SECONDS) / seconds
    next_shown = 100 * ((step + 1) * STEP_SECONDS) / seconds
    # A look is over with the next token.
    return (
        f"@keyframes s{step} {{ 0%, {shown:.2f}% {{ opacity: 0; }} {shown + 1.5:.2f}%, 100% {{ opacity: 1; }} }}\n"
        f"@keyframes l{step} {{ 0%, {shown:.2f}%, {next_shown + 1:.2f}%, 100% {{ opacity: 0; }} "
        f"{shown + 1.5:.2f}%, {next_shown:.2f}% {{ opacity: 1; }} }}\n"
    )


__all__ = ["animated_svg"]
