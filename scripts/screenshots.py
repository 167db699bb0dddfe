"""Takes pictures of a run's report and of its demo, on a wide screen and a phone's, light and dark, to be looked at.

    python scripts/screenshots.py quickstart/model --output_dir output/screenshots

The report has to be there (`bidir-seq2seq report`). The demo is shown before and after it has written, in the middle
of the animation with a token pointed at, and in Chinese. Prints what is wider than its screen, and exits with 1 then.
Needs Chromium, and for Chinese a font that has it, such as Debian's `chromium` and `fonts-noto-cjk`.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from bidir_seq2seq.demo.__main__ import example_texts
from bidir_seq2seq.demo.app import build_app, launch
from bidir_seq2seq.demo.words import WORDS
from bidir_seq2seq.demo.writer import DemoWriter

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


@contextmanager
def demo(model_dir: Path, texts: list[str]) -> Iterator[str]:
    """The address of a demo that runs meanwhile."""
    app = build_app(DemoWriter.from_folder(model_dir), texts)
    yield launch(app, prevent_thread_lock=True, quiet=True)[1]
    app.close()


def show_report(page: Page, address: str, _: str) -> Iterator[str]:
    page.goto(address)
    yield "report"


def show_demo(page: Page, address: str, text: str) -> Iterator[str]:
    page.goto(address)
    page.wait_for_selector("#text textarea")
    yield "demo"
    page.fill("#text textarea", text)
    page.click("#write")
    page.wait_for_selector("#titles .bidir-title")
    # A model without a search to be watched has a line of text there; until then the seconds stand there.
    animation = page.locator("#animation")
    animation.locator("iframe").or_(animation.get_by_text(WORDS["en"]["no_animation"])).first.wait_for()
    if not animation.locator("iframe").count():
        yield "demo-written"
        return
    frame = page.frame_locator("#animation iframe")
    frame.locator("#scrub").focus()
    page.keyboard.press("End")
    yield "demo-written"
    middle = int(frame.locator("#scrub").get_attribute("max")) // 2
    frame.locator("#scrub").fill(str(middle))
    frame.locator(".lane.r2l g.new").first.hover()
    yield "demo-middle"
    page.get_by_text("中文").click()
    page.get_by_role("button", name="写标题").wait_for()
    # A new frame is painted once it is seen.
    page.locator("#animation iframe").scroll_into_view_if_needed()
    frame.locator("#legend", has_text="先验").wait_for()
    yield "demo-chinese"


def take(browser: Browser, views: dict, text: str, output_dir: Path) -> list[str]:
    """Takes all pictures, and names those whose page is wider than its screen."""
    too_wide = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            for show, address in views.items():
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                # Nobody is in a hurry, and the machine may be busy.
                page.set_default_timeout(120_000)
                for name in show(page, address, text):
                    # Transitions end.
                    page.wait_for_timeout(500)
                    path = output_dir / f"{name}-{width}-{scheme}.png"
                    page.screenshot(path=path, full_page=True)
                    if page.evaluate("document.documentElement.scrollWidth") > width:
                        too_wide.append(path.name)
                page.close()
    return too_wide


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, help="Folder of a run with its report.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--text", help="What the demo writes about. Default: the first test document.")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    texts = [*([args.text] if args.text else []), *example_texts(args.model_dir)]
    report = (args.model_dir / "report" / "report.html").resolve()
    with demo(args.model_dir, texts) as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        too_wide = take(browser, {show_report: report.as_uri(), show_demo: address}, texts[0], args.output_dir)
        browser.close()
    print(f"{len(list(args.output_dir.glob('*.png')))} pictures in {args.output_dir}")
    for name in too_wide:
        print(f"wider than its screen: {name}")
    sys.exit(bool(too_wide))


if __name__ == "__main__":
    main()
