"""The demo: what it writes, what it shows, and the page itself in a browser where there is one."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from conftest import sideways, tiny_model

from bidir_seq2seq.demo.__main__ import main
from bidir_seq2seq.demo.animation import animation_frame, animation_page
from bidir_seq2seq.demo.picture import animated_svg
from bidir_seq2seq.demo.words import WORDS
from bidir_seq2seq.demo.writer import MAX_CHARACTERS, DemoWriter
from bidir_seq2seq.search_history import DIRECTIONS, search_history
from bidir_seq2seq.tokenization import build_char_tokenizer

pytest.importorskip("gradio", reason="the demo needs gradio: pip install 'bidir_seq2seq[demo]'")

from bidir_seq2seq.demo.app import build_app, launch, show_animation, show_titles
from bidir_seq2seq.demo.space import export_space

HOSTILE = "<script>alert(1)</script>"
PHONE = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True}


def make_writer(**overrides) -> DemoWriter:
    torch.manual_seed(0)
    tokenizer = build_char_tokenizer(["abcdefgh <>/script&lt;()1n"], min_frequency=1, model_max_length=40)
    model = tiny_model(vocab_size=len(tokenizer), **overrides)
    model.generation_config.update(max_length=9, min_length=5, num_beams=3)
    return DemoWriter(model, tokenizer)


@pytest.fixture(scope="module")
def writer() -> DemoWriter:
    return make_writer()


@pytest.fixture(scope="module")
def folder(writer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    writer.model.save_pretrained(path)
    writer.tokenizer.save_pretrained(path)
    return path


def test_a_text_is_written_about_in_every_direction(writer):
    result = writer.write("abc def")
    assert [written.system for written in result.written] == ["l2r", "r2l", "both", "default"]
    for written in result.written:
        scores = [score for _, score in written.titles]
        assert scores == sorted(scores, reverse=True) and written.milliseconds > 0
    assert result.notices == []


@pytest.mark.parametrize(
    ("overrides", "systems"),
    [
        ({"decoder_directions": "l2r"}, ["l2r", "default"]),
        ({"twin_partner": "none"}, ["l2r", "r2l", "both", "default"]),
    ],
)
def test_writers_that_do_not_read_each_other_are_not_watched(overrides, systems):
    result = make_writer(**overrides).write("abc")
    assert [written.system for written in result.written] == systems and result.search is None
    assert show_animation(result, "en") == WORDS["en"]["no_animation"]


def test_the_search_is_watched_whatever_the_model_proposes_by_default():
    writer = make_writer()
    writer.model.generation_config.proposals = "l2r+r2l"
    assert writer.write("abc").search is not None


@pytest.mark.parametrize("overrides", [{}, {"twin_partner": "none"}])
def test_what_a_tuned_model_has_stored_is_its_default_alone(overrides):
    plain, tuned = make_writer(**overrides), make_writer(**overrides)
    tuned.model.generation_config.update(proposals="l2r+r2l+drawn", ranking={"consensus": 1.0}, consensus_samples=4)
    *expected, _ = plain.write("abc def").written
    *found, default = tuned.write("abc def").written
    assert [(one.system, one.titles) for one in found] == [(one.system, one.titles) for one in expected]
    assert all(0 <= score <= 1 for _, score in default.titles)


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("", ["empty"]),
        (" \n\t ", ["empty"]),
        ("ab" * 60, ["cut"]),
        ("a" * 100_000, ["too_long", "cut"]),
        ("🙂🙃🙂", ["unknown"]),
        ("שלום עולם", ["unknown"]),
        ("abc\ud800", []),
        (HOSTILE, []),
    ],
)
def test_any_text_is_answered(writer, text, notices):
    result = writer.write(text)
    assert [name for name, _ in result.notices] == notices
    for language in WORDS:
        assert "<script>" not in show_titles(result, language)
        assert "<script" not in show_animation(result, language)
    assert bool(result.written) == (notices != ["empty"])
    assert len(text) <= MAX_CHARACTERS or result.search is not None


def test_a_word_outside_the_vocabulary_is_shown_and_may_be_copied():
    writer = make_writer(use_copy=True)
    result = writer.write("abczzdef")
    assert "".join(result.search.source) == "abczzdef"
    assert all("\ufffd" not in text for written in result.written for text, _ in written.titles)


def test_the_default_is_what_the_model_writes_by_itself():
    torch.manual_seed(3)
    writer = make_writer()
    writer.model.generation_config.num_beams = 9
    writer = DemoWriter(writer.model, writer.tokenizer)
    for text in ("abc def", "fed cba", "aabbccdd"):
        (own,) = writer.pipeline(text)
        default = next(written for written in writer.write(text).written if written.system == "default")
        assert default.titles[0][0] == own["generated_text"].strip()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("max_length", [9, 30])
def test_the_history_is_the_search(writer, max_length, length_penalty):
    """Paths of the finished titles spell what `generate` returns, and shares add up."""
    ids = torch.tensor([writer.tokenizer("abcdef")["input_ids"]])
    output = writer.model.generate(
        input_ids=ids, num_beams=3, num_return_sequences=3, output_attentions=True, return_dict_in_generate=True,
        decoding_direction="both", joint_rescoring=False, max_length=max_length, length_penalty=length_penalty,
    )  # fmt: skip
    search = search_history(writer.model, writer.tokenizer, output.history, ids[0])
    assert "".join(search.source) == "abcdef"
    titles = [text.strip() for text in writer.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)]
    found = {}
    for direction in DIRECTIONS:
        for title in search.finished[direction]:
            path = search.path(direction, title.step, title.rank)
            assert [step for step, _ in path] == list(range(title.step + 1))
            texts = [search.steps[direction][step][rank].text for step, rank in path]
            assert "".join(texts if direction == "l2r" else texts[::-1]).strip() == title.text
            # Sums of log-probabilities, whatever titles are ranked by.
            sums = [search.steps[direction][step][rank].score for step, rank in path]
            assert sums == sorted(sums, reverse=True)
            found[title.text] = title.score
    assert set(titles) <= set(found)
    for title, score in zip(titles, output.sequences_scores.tolist()):
        assert found[title] == pytest.approx(score, abs=1e-3)
    for direction in DIRECTIONS:
        for choice in (c for choices in search.steps[direction] for c in choices if c is not None):
            assert not choice.source or 0.9 < sum(share for _, share in choice.source) < 1.01
            assert sum(share for _, share in choice.partner_tokens) < 1.01


def test_no_text_ends_the_element_that_holds_it(writer):
    search = writer.write("</script><script>alert(1)</script> &lt;").search
    page = animation_page(search)
    data = page.split('id="data">')[1].split("</script>")[0]
    assert "".join(json.loads(data)["search"]["source"]) == "</script><script>alert(1)</script> &lt;"
    assert "<" not in data and page.count("<script") == 2
    frame = animation_frame(search, "zh")
    assert frame.count("<") == 2 and 'sandbox="allow-scripts"' in frame


def test_both_languages_say_the_same():
    assert set(WORDS["en"]) == set(WORDS["zh"])
    for name, text in WORDS["en"].items():
        fields = [{part.split(":")[0] for part in words.split("{")[1:]} for words in (text, WORDS["zh"][name])]
        assert {f.split("}")[0] for f in fields[0]} == {f.split("}")[0] for f in fields[1]}, name


def test_the_picture_is_an_svg_of_both_titles(writer):
    search = writer.write("abc</text>def").search
    picture = animated_svg(search)
    texts = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    expected = sum(len(search.best(direction)) for direction in DIRECTIONS)
    assert len(texts) == expected + 2 and "<script" not in picture


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.e2e
def test_a_space_runs_alone(folder, tmp_path):
    files = export_space(folder, tmp_path / "space", ["abc"])
    names = {str(path.relative_to(tmp_path / "space")) for path in files}
    assert {"app.py", "README.md", "requirements.txt", "model/model.safetensors"} <= names
    head = (tmp_path / "space" / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in head and "app_file: app.py" in head
    with pytest.raises(ValueError, match="is not an empty folder"):
        export_space(folder, tmp_path / "space")
    with pytest.raises(ValueError, match="has no config.json"):
        export_space(tmp_path / "space", tmp_path / "other")
    port = free_port()
    environment = {"PATH": "/usr/bin:/bin", "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    # Isolated from this checkout: the package is the Space's own.
    server = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=environment)
    try:
        assert "Titles from both ends" in wait_for(f"http://127.0.0.1:{port}/", server)
    finally:
        server.kill()
        server.wait()


def wait_for(address: str, server: subprocess.Popen) -> str:
    for _ in range(240):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"{address} does not answer")


def test_the_command_writes_a_picture_and_names_what_is_missing(folder, tmp_path, capsys):
    main([str(folder), "--make_animation", str(tmp_path / "a.svg"), "--text", "abc"])
    assert (tmp_path / "a.svg").read_text().startswith("<svg") and "Animation:" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --text"):
        main([str(folder), "--make_animation", str(tmp_path / "b.svg")])
    with pytest.raises(ValueError, match="holds no model"):
        main([str(tmp_path)])


@pytest.fixture(scope="module")
def address(writer):
    app = build_app(writer, ["abc def"])
    _, url, _ = launch(app, prevent_thread_lock=True, quiet=True, server_port=free_port())
    assert url.startswith("http://127.0.0.1:")
    yield url
    app.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor, who fails with any error of the page, and asks no other server."""
    contexts, troubles = [], []

    def note(trouble: str):
        if not trouble.startswith((address, "data:", "blob:", "about:")):
            troubles.append(trouble)

    def open_page(**settings):
        context = browser.new_context(**settings)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: note(f"error: {error}"))
        page.on("dialog", lambda dialog: note(f"dialog: {dialog.message}"))
        page.on("request", lambda request: note(request.url))
        page.goto(address)
        page.wait_for_selector("#text textarea")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def write(page, text: str):
    page.fill("#text textarea", text)
    page.click("#write")
    page.wait_for_selector("#titles .bidir-title, #titles .bidir-notice")


def animation(page):
    """The frame in which the search is played, once it is there."""
    page.frame_locator("#animation iframe").locator("g.node").first.wait_for(state="attached")
    return page.locator("#animation iframe").element_handle().content_frame()


def test_a_visitor_pastes_a_text_and_gets_titles(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('abc def')")
    page.focus("#text textarea")
    page.keyboard.press("Control+V")
    page.click("#write")
    page.locator("#titles .bidir-card").nth(3).wait_for()
    assert animation(page).text_content("#source") == "abc def"
    page.locator("#titles summary").first.click()
    assert page.locator("#titles ol").first.is_visible()


def test_a_visitor_plays_steps_scrubs_and_points(visit):
    page = visit()
    write(page, "abc def")
    frame = page.frame_locator("#animation iframe")
    where, play = frame.locator("#where"), frame.locator("#play")
    # It plays by itself; moving stops it.
    frame.locator("#scrub").focus()
    page.keyboard.press("Home")
    frame.locator("#where", has_text="Step 1 / ").wait_for()
    frame.locator("#forward").click()
    assert where.text_content().startswith("Step 2 / ")
    frame.locator("#back").click()
    assert where.text_content().startswith("Step 1 / ")
    last = int(frame.locator("#scrub").get_attribute("max"))
    for step in (2, last):
        frame.locator("#scrub").fill(str(step))
        assert where.text_content() == f"Step {step + 1} / {last + 1}"
        shown = frame.locator(".lane.l2r g.node:not(.hidden)").count()
        assert shown >= step + 1 and (frame.locator(".lane.l2r g.node.hidden").count() == 0) == (step == last)
    frame.locator(".lane.r2l g.node:not(.hidden)").nth(7).hover()
    assert "looked at its partner's" in frame.locator("#told").text_content()
    assert frame.locator("#source span[style*=background]").count() > 0
    assert frame.locator(".lane.l2r g.node rect[style*=fill]").count() > 0
    play.click()
    frame.locator("#where", has_text="Step 2 / ").wait_for()
    assert "Pause" in play.text_content()
    page.keyboard.press("ArrowLeft")
    assert where.text_content().startswith("Step 1 / ") and "Play" in play.text_content()


def test_the_page_speaks_chinese(visit):
    page = visit()
    write(page, "abc")
    page.get_by_text("中文").click()
    page.get_by_role("button", name="写标题").wait_for()
    page.locator("#titles").get_by_text("从左到右").wait_for()
    page.get_by_text("示例").wait_for()
    page.frame_locator("#animation iframe").locator("#legend", has_text="先验").wait_for()
    # The text of the visitor stays, and so do the titles; and back again.
    assert page.input_value("#text textarea") == "abc"
    page.get_by_text("English").click()
    page.locator("#titles").get_by_text("Left to right").wait_for()


@pytest.mark.e2e
@pytest.mark.parametrize(
    "text",
    [HOSTILE + "<img src=x onerror=alert(2)>", "a" * 100_000, "🙂🙃 abc", "שלום עולם abc", ""],
    ids=["script", "long", "emoji", "right-to-left", "empty"],
)
def test_no_text_does_harm_on_a_phone(visit, text):
    page = visit(**PHONE)
    write(page, text)
    assert page.locator("#titles script, #titles img").count() == 0
    assert page.locator("#titles .bidir-card").count() == (4 if text else 0)
    assert sideways(page) == 0
    if text:
        frame = animation(page)
        read = frame.text_content("#source")
        # What the vocabulary does not have is shown as such.
        assert read and all(shown in (sign, "\ufffd") for shown, sign in zip(read, text))
        assert frame.query_selector("#source img, #source script") is None
        assert sideways(frame) == 0


def test_two_visitors_at_once_do_not_meet(visit):
    first, second = visit(), visit(**PHONE)
    for page, text in ((first, "abc"), (second, "fed")):
        page.fill("#text textarea", text)
    first.click("#write")
    second.click("#write")
    for page, text in ((first, "abc"), (second, "fed")):
        page.frame_locator("#animation iframe").locator("#source", has_text=text).wait_for()
    second.get_by_text("中文").click()
    second.get_by_role("button", name="写标题").wait_for()
    assert first.get_by_role("button", name="Write titles").is_visible()


@pytest.mark.parametrize(("told", "threads"), [(None, 1), ("2", 2)])
def test_one_thread_writes_titles_unless_told_otherwise(monkeypatch, told, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    torch.set_num_threads(2)
    launch(SimpleNamespace(launch=lambda **settings: None))
    assert torch.get_num_threads() == threads
