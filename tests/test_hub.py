"""Folders that load without the package, their cards, and their upload to a local server that answers like the Hub."""

import base64
import copy
import hashlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
import yaml
from conftest import tiny_model
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from markdown_it import MarkdownIt
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from bidir_seq2seq import BidirSeq2SeqConfig, BidirSeq2SeqForConditionalGeneration, BidirSeq2SeqModel
from bidir_seq2seq.configuration_bidir_seq2seq import FORMAT_VERSION
from bidir_seq2seq.hub import PICTURES, create_model_card, push_to_hub, save_for_hub
from bidir_seq2seq.tokenization import build_char_tokenizer

ROOT = Path(__file__).parents[1]
CODE = [path.name for path in (ROOT / "src" / "bidir_seq2seq").glob("*_bidir_seq2seq.py")]
FILES = sorted(
    [
        *CODE,
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
)
SCORES = {
    "lead": {"rouge1": 28.84, "rouge2": 6.99, "rougeL": 24.12, "bleu": 3.84, "first4": 5.04, "last4": 3.83},
    "joint": {"rouge1": 28.94, "rouge2": 8.9, "rougeL": 27.061, "bleu": 4.92, "first4": 19.5, "last4": 11.89},
}
WAYS = {
    "default": {},
    "greedy": {"decoding_direction": "l2r", "num_beams": 1},
    "l2r": {"decoding_direction": "l2r", "num_beams": 3},
    "r2l": {"decoding_direction": "r2l", "num_beams": 3},
    "both": {"decoding_direction": "both", "num_beams": 3, "joint_rescoring": False},
    "joint": {"decoding_direction": "both", "num_beams": 3, "joint_rescoring": True},
}
TEXTS = ["abcdefgh", "hga", "b"]


@pytest.fixture
def tokenizer():
    return build_char_tokenizer(["abcdefgh"], min_frequency=1)


@pytest.fixture
def model(tokenizer):
    return share_model(tokenizer)


def share_model(tokenizer, **overrides) -> BidirSeq2SeqForConditionalGeneration:
    model = tiny_model(vocab_size=len(tokenizer), **overrides)
    model.generation_config.max_length = 9
    model.generation_config.num_beams = 2
    return model


def write(model, tokenizer) -> dict[str, list]:
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return {name: model.generate(**batch, **way).tolist() for name, way in WAYS.items()}


# What a stranger's process does with the folder. It prints what it found as JSON.
STRANGER = """
import io, json, os, sys
from contextlib import redirect_stdout

def forbid(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError("the network is off")

sys.addaudithook(forbid)
sys.modules["bidir_seq2seq"] = None
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

folder, newer, texts, ways = json.loads(sys.argv[1])
found = {}
try:
    import bidir_seq2seq
except ImportError as error:
    found["import_error"] = str(error)
try:
    import urllib.request
    urllib.request.urlopen("http://127.0.0.1:9")
except OSError as error:
    found["network_error"] = str(error)

def load(auto, name):
    return auto.from_pretrained(name, trust_remote_code=True)

def write(model):
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: model.generate(**batch, **way).tolist() for name, way in ways.items()}

tokenizer = load(AutoTokenizer, folder)
found["input_ids"] = tokenizer(texts)["input_ids"]
config = load(AutoConfig, folder)
found["config"] = config.to_diff_dict()
model = load(AutoModelForSeq2SeqLM, folder)
found["generated"] = write(model)
base = load(AutoModel, folder)
ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
found["features"] = base(input_ids=ids, decoder_input_ids=ids[:, :3]).last_hidden_state.tolist()
found["modules"] = {type(thing).__name__: type(thing).__module__.split(".")[0] for thing in (config, model, base)}

model.save_pretrained("again")
found["saved_again"] = sorted(os.listdir("again"))
found["generated_again"] = write(load(AutoModelForSeq2SeqLM, "again"))
found["same_base_again"] = bool((load(AutoModel, "again").encoder.embed_tokens.weight
                                 == base.encoder.embed_tokens.weight).all())
try:
    load(AutoConfig, newer)
except ValueError as error:
    found["newer_error"] = str(error)

examples = Path(folder, "README.md").read_text(encoding="utf-8").split("```python\\n")[1:]
with redirect_stdout(io.StringIO()) as printed:
    for example in examples[1:]:
        exec(example.split("```")[0], globals())
found["example_output"] = printed.getvalue()
found["package_modules"] = [
    name for name, module in sys.modules.items() if module and name.split(".")[0] == "bidir_seq2seq"
]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A model, its tokenizer, and what a process without the package and without a network made of their folder."""
    here = tmp_path_factory.mktemp("stranger")
    torch.manual_seed(0)
    tokenizer = build_char_tokenizer(["abcdefgh"], min_frequency=1)
    model = share_model(tokenizer)
    model.generation_config.joint_rescoring = True
    save_for_hub(model, tokenizer, here / "titles")
    shutil.copytree(here / "titles", here / "newer")
    config = json.loads((here / "newer" / "config.json").read_text())
    (here / "newer" / "config.json").write_text(json.dumps({**config, "format_version": FORMAT_VERSION + 1}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment = {
        **kept,
        "HF_HOME": str(here / "hf_home"),
        "HF_MODULES_CACHE": str(here / "hf_modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, json.dumps(["titles", "newer", TEXTS, WAYS])],
        cwd=here,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return model, tokenizer, json.loads(process.stdout)


@pytest.mark.e2e
def test_the_folder_loads_where_the_package_is_not_installed(stranger):
    model, tokenizer, found = stranger
    assert "bidir_seq2seq" in found["import_error"] and found["package_modules"] == []
    assert "the network is off" in found["network_error"]
    assert set(found["modules"].values()) == {"transformers_modules"}
    assert set(found["modules"]) == {"BidirSeq2SeqConfig", "BidirSeq2SeqModel", "BidirSeq2SeqForConditionalGeneration"}
    auto_map = found["config"].pop("auto_map")
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"}
    assert found["config"] == model.config.to_diff_dict()
    assert found["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_remote_code_writes_what_the_package_writes(stranger):
    model, tokenizer, found = stranger
    expected = write(model, tokenizer)
    assert found["generated"] == expected
    assert expected["default"] != expected["l2r"] != expected["r2l"] != expected["both"]
    ids = tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    features = model.model(input_ids=ids, decoder_input_ids=ids[:, :3]).last_hidden_state
    torch.testing.assert_close(torch.tensor(found["features"]), features.detach())


def test_remote_code_can_be_saved_again(stranger):
    _, _, found = stranger
    assert found["saved_again"] == sorted([*CODE, "config.json", "generation_config.json", "model.safetensors"])
    assert found["generated_again"] == found["generated"]
    assert found["same_base_again"]


def test_remote_code_refuses_a_newer_format(stranger):
    assert f"format_version={FORMAT_VERSION + 1}" in stranger[2]["newer_error"]


def test_the_examples_of_the_card_run_without_the_package(stranger):
    assert [line.split()[0] for line in stranger[2]["example_output"].splitlines()] == ["both", "l2r", "r2l"]


@pytest.mark.parametrize("directions", ["both", "l2r", "r2l"])
def test_the_examples_of_the_card_run_with_the_package(directions, tokenizer, tmp_path, monkeypatch, capsys):
    save_for_hub(share_model(tokenizer, decoder_directions=directions), tokenizer, tmp_path / "titles")
    load, _, generate = re.findall(r"```python\n(.*?)```", (tmp_path / "titles/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(load, names)
    assert isinstance(names["model"], BidirSeq2SeqForConditionalGeneration)
    exec(generate, names)
    assert len(capsys.readouterr().out.splitlines()) == (3 if directions == "both" else 1)


def test_the_folder_holds_these_files_and_no_others(model, tokenizer, tmp_path):
    files = save_for_hub(model, tokenizer, tmp_path / "a" / "titles")
    assert sorted(os.listdir(tmp_path / "a" / "titles")) == FILES
    assert files == [tmp_path / "a" / "titles" / name for name in FILES]
    for name in CODE:
        assert (tmp_path / "a" / "titles" / name).read_bytes() == (ROOT / "src/bidir_seq2seq" / name).read_bytes()


def test_the_configs_say_everything(model, tokenizer, tmp_path):
    model.generation_config.joint_rescoring = True
    save_for_hub(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM"}
    assert config["format_version"] == 1
    generation_config = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation_config["decoding_direction"], generation_config["joint_rescoring"]) == ("both", True)
    assert (generation_config["max_length"], generation_config["num_beams"]) == (9, 2)


def test_saving_for_the_hub_leaves_no_trace_on_the_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "before")
    config = copy.deepcopy(model.config)
    save_for_hub(model, tokenizer, tmp_path / "titles")
    for part in (BidirSeq2SeqConfig, BidirSeq2SeqModel, BidirSeq2SeqForConditionalGeneration):
        assert part._auto_class is None
    assert model.config.to_dict() == config.to_dict()
    model.save_pretrained(tmp_path / "after")
    assert sorted(os.listdir(tmp_path / "after")) == ["config.json", "generation_config.json", "model.safetensors"]
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()


def test_a_model_saved_in_its_own_folder_is_the_same_model(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    save_for_hub(loaded, AutoTokenizer.from_pretrained(tmp_path), tmp_path)
    expected = write(model, tokenizer)
    assert write(loaded, tokenizer) == expected
    assert write(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), tokenizer) == expected


def test_a_model_that_came_as_remote_code_can_be_shared(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    save_for_hub(model, tokenizer, tmp_path / "first")
    with (tmp_path / "first" / "cache_bidir_seq2seq.py").open("a") as file:
        file.write("# as its author left it\n")
    reference = "modeling_bidir_seq2seq.BidirSeq2SeqForConditionalGeneration"
    remote = get_class_from_dynamic_module(reference, tmp_path / "first").from_pretrained(tmp_path / "first")
    assert type(remote) is not BidirSeq2SeqForConditionalGeneration
    files = save_for_hub(remote, tokenizer, tmp_path / "second")
    assert [file.name for file in files] == FILES
    for name in FILES:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first.replace(b'"first"', b'"second"').replace(b"# first", b"# second") == second


def test_what_else_is_in_the_folder_stays(model, tokenizer, tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_text("state")
    (tmp_path / "config.json").write_text("old")
    save_for_hub(model, tokenizer, tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "checkpoint-5"])
    assert (tmp_path / "checkpoint-5" / "optimizer.pt").read_text() == "state"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bidir_seq2seq"


def test_our_card_is_renewed_and_a_card_of_the_users_own_is_kept(model, tokenizer, tmp_path):
    save_for_hub(model, tokenizer, tmp_path)
    save_for_hub(model, tokenizer, tmp_path, license="mit")
    card = (tmp_path / "README.md").read_text()
    assert "Weights: mit" in card
    own = "".join(line for line in card.splitlines(keepends=True) if not line.startswith("<!--")) + "My own words.\n"
    (tmp_path / "README.md").write_text(own)
    files = save_for_hub(model, tokenizer, tmp_path)
    assert (tmp_path / "README.md").read_text() == own
    assert tmp_path / "README.md" in files


def test_what_cannot_be_shared_is_refused_before_anything_is_written(model, tokenizer, tmp_path):
    folder = tmp_path / "titles"
    larger = build_char_tokenizer(["abcdefghijk"], min_frequency=1)
    with pytest.raises(ValueError, match="tokenizer has 15 tokens and the model 12.*resize_token_embeddings"):
        save_for_hub(model, larger, folder)
    with pytest.raises(ValueError, match="is a BidirSeq2SeqModel, .* give the model itself"):
        save_for_hub(model.model, tokenizer, folder)
    with pytest.raises(ValueError, match="is a DataParallel"):
        save_for_hub(torch.nn.DataParallel(model), tokenizer, folder)
    with pytest.raises(ValueError, match="repo_id='titles' must say whose it is, as user/titles"):
        save_for_hub(model, tokenizer, folder, "titles")
    with pytest.raises(ValueError, match="Repo id must"):
        save_for_hub(model, tokenizer, folder, "a/b/c")
    with pytest.raises(ValueError, match="give dataset_name or datasets"):
        save_for_hub(model, tokenizer, folder, metrics=SCORES)
    with pytest.raises(ValueError, match=r"metrics\['eval_rougeL'\]=27.0 must hold rouge1.*scores.json"):
        save_for_hub(model, tokenizer, folder, metrics={"eval_rougeL": 27.0}, dataset_name="docstrings")
    assert not folder.exists()
    folder.write_text("a file")
    with pytest.raises(ValueError, match=f"save_directory='{folder}' is a file"):
        save_for_hub(model, tokenizer, folder)
    assert folder.read_text() == "a file"


def test_the_card_shows_the_pictures_of_its_report(model, tokenizer, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    for name in ("positions.png", "lengths.png", "loss_by_steps.png"):
        (report / name).write_bytes(name.encode())
    files = save_for_hub(model, tokenizer, tmp_path / "titles", report_dir=report)
    pictures = ["loss_by_steps.png", "positions.png"]
    assert [file.name for file in files if file.suffix == ".png"] == pictures
    text = (tmp_path / "titles" / "README.md").read_text()
    assert re.findall(r"!\[.+\]\((.*)\)", text) == pictures
    assert all((tmp_path / "titles" / name).read_bytes() == name.encode() for name in pictures)
    save_for_hub(model, tokenizer, tmp_path / "plain")
    assert "![" not in (tmp_path / "plain" / "README.md").read_text()
    with pytest.raises(ValueError, match="has none of loss_by_steps.png"):
        save_for_hub(model, tokenizer, tmp_path / "none", report_dir=tmp_path / "plain")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("language", "heading", "alt"),
    [("en", "Pictures", "Validation ROUGE-L against updates"), ("zh", "图", "验证集 ROUGE-L 随更新次数的变化")],
)
def test_a_card_with_pictures_reads_well_and_loads_back(language, heading, alt, model, tokenizer, tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    for name in PICTURES:
        (report / name).write_bytes(b"a picture")
    said = {"language": language, "metrics": SCORES, "dataset_name": "pairs", "report_dir": report}
    save_for_hub(model, tokenizer, tmp_path / "titles", **said)
    card = ModelCard.load(tmp_path / "titles" / "README.md")
    assert card.data.language == [language] and len(card.data.eval_results) == 4
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    # As a reader sees it: headings, one picture a paragraph, tables; no sign of Markdown or of the template is left.
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    kinds = Counter(token.type for token in tokens)
    assert kinds["heading_open"] == 7 and kinds["table_open"] == 1
    inline = [child for token in tokens for child in token.children or ()]
    shown = {child.attrs["src"]: child.content for child in inline if child.type == "image"}
    assert list(shown) == list(PICTURES) and shown["rouge_by_steps.png"] == alt
    assert all((tmp_path / "titles" / name).exists() for name in shown)
    headings = [after.content for token, after in zip(tokens, tokens[1:]) if token.type == "heading_open"]
    assert heading in headings
    texts = "".join(child.content for child in inline if child.type == "text")
    assert not re.search(r"\{[{%]|\*\*|^#|\]\(", texts)


def test_the_card_holds_what_was_said(model, tokenizer, tmp_path):
    save_for_hub(
        model,
        tokenizer,
        tmp_path,
        "user/titles",
        language=["zh", "en"],
        license="cc-by-4.0",
        datasets="user/headlines",
        training_data="Headlines of *one* newspaper.",
        limitations="Weak on sports.",
        metrics=SCORES,
        dataset_name="500 held-out headlines",
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license, card.data.datasets) == (
        ["zh", "en"],
        "cc-by-4.0",
        ["user/headlines"],
    )
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "summarization")
    assert card.data.metrics == ["bleu", "rouge"]
    results = {result.metric_name: result for result in card.data.eval_results}
    assert card.data.model_name == "user/titles"
    assert set(results) == {"ROUGE-1 (joint)", "ROUGE-2 (joint)", "ROUGE-L (joint)", "BLEU (joint)"}
    best = results["ROUGE-L (joint)"]
    assert (best.metric_type, best.metric_value, best.task_type) == ("rouge", 27.06, "summarization")
    assert (best.dataset_type, best.dataset_name) == ("user/headlines", "500 held-out headlines")
    for text in ("Headlines of *one* newspaper.", "Weak on sports.", "500 held-out headlines", "Weights: cc-by-4.0"):
        assert text in card.text
    assert re.search(r"^joint +28.94 +8.90 +27.06 ", card.text, re.MULTILINE)
    assert "`lead` is no model" in card.text
    assert card.text.count('from_pretrained("user/titles"') == 4
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_the_card_reads_sizes_from_the_model_and_invents_nothing(model, tokenizer):
    card = create_model_card(model, tokenizer, "user/titles")
    assert f"| {sum(p.numel() for p in model.parameters()):,} (float32) |" in card.text
    assert f"| {len(tokenizer)} tokens |" in card.text and "| 512 tokens, the rest is cut |" in card.text
    assert "| language | not given |" in card.text
    for heading in ("Training data", "Scores"):
        assert f"## {heading}\n\nNot given.\n" in card.text
    assert "Limits of this model in particular: not given." in card.text and "Weights: not given." in card.text
    absent = {"language", "license", "datasets", "metrics", "model-index", "model_name"}
    assert absent.isdisjoint(card.data.to_dict())
    assert "None" not in str(card)


def test_the_card_speaks_of_joint_rescoring_where_there_is_any(tokenizer):
    model = share_model(tokenizer)
    assert "`joint_rescoring` (off unless" in create_model_card(model, tokenizer, "titles").text
    model.generation_config.joint_rescoring = True
    assert "`joint_rescoring` (on unless" in create_model_card(model, tokenizer, "titles").text
    model.generation_config.ranking = {"l2r": 0.4, "r2l": 0.6}
    told = create_model_card(model, tokenizer, "titles").text
    assert "`ranking` (`{'l2r': 0.4, 'r2l': 0.6}` unless" in told and "`joint_rescoring` (" not in told
    leaky = share_model(tokenizer, twin_dropout=0.0)
    assert "joint_rescoring" not in create_model_card(leaky, tokenizer, "titles").text


@pytest.mark.parametrize("model", ["quickstart", "news"])
def test_a_card_of_ours_has_the_figures_of_its_table(model):
    card = ModelCard.load(ROOT / "model_cards" / model / "README.md")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert {"positions.png", "loss_by_steps.png"} <= set(pictures)
    assert all((ROOT / "model_cards" / model / picture).exists() for picture in pictures)
    (table,) = re.findall(r"```\n(system .*?)```", card.text, re.DOTALL)
    assert model != "quickstart" or table in (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(card.data.eval_results) == 16
    for result in card.data.eval_results:
        name, system = re.fullmatch(r"(.*) \((.*)\)", result.metric_name).groups()
        column = ["ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU"].index(name) + 1
        (row,) = (line.split() for line in table.splitlines() if line.startswith(f"{system} "))
        assert float(row[column]) == result.metric_value
    settings = yaml.safe_load((ROOT / "model_cards" / f"{model}.yaml").read_text(encoding="utf-8"))
    for setting in ("repo_id", "training_data", "limitations", "dataset_name"):
        assert settings[setting] in str(card)


def test_a_chinese_card_is_in_chinese(tokenizer):
    for directions, words in (("both", "双向集束搜索"), ("l2r", "从左往右写"), ("r2l", "从右往左写")):
        model = share_model(tokenizer, decoder_directions=directions)
        card = create_model_card(model, tokenizer, "titles", language="zh", limitations="很小。")
        assert card.data.language == ["zh"] and words in card.text and "很小。" in card.text
        english = create_model_card(model, tokenizer, "titles", language=["zh", "en"])
        assert "## Limits" in english.text and "## Limits" not in card.text
        # The same programs stand in both, but for a comment and the text to write about.
        programs = [re.findall(r"```python\n(.*?)```", text, re.DOTALL) for text in (card.text, english.text)]
        assert [len(found) for found in programs] == [3, 3]
        assert programs[0][1] == programs[1][1]


def test_the_card_of_one_direction_speaks_of_it_alone(tokenizer):
    card = create_model_card(share_model(tokenizer, decoder_directions="r2l"), tokenizer, "titles").text
    assert "| directions | right to left |" in card
    assert "twin" not in card.lower() and "decoding_direction" not in card and "joint_rescoring" not in card


class HubHandler(BaseHTTPRequestHandler):
    """Answers what an upload asks; `server` is a `FakeHub`."""

    protocol_version = "HTTP/1.1"

    def handle_request(self):
        hub = self.server
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
        if hub.refuse and hub.refuse[1] in path:
            return self.reply(hub.refuse[0], {"error": "the server says no"})
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self.reply(200, {"url": f"{hub.url}/{json.loads(body)['organization']}/{json.loads(body)['name']}"})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if "/branch/" in path:
            return self.reply(200, {})
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                upload = {"href": f"{hub.url}/storage/{entry['oid']}"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/verify"}}
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if path.startswith("/storage/"):
            hub.storage[path.rsplit("/", 1)[1]] = body
            return self.reply(200, {})
        if path == "/verify":
            asked = json.loads(body)
            stored = hub.storage[asked["oid"]]
            assert hashlib.sha256(stored).hexdigest() == asked["oid"] and len(stored) == asked["size"]
            hub.verified.append(asked["oid"])
            return self.reply(200, {})
        if "/commit/" in path:
            hub.commit(path, [json.loads(line) for line in body.splitlines()])
            commit = {"commitUrl": f"{hub.url}/user/titles/commit/{'0' * 40}", "commitOid": "0" * 40}
            return self.reply(200, {**commit, "pullRequestUrl": f"{hub.url}/user/titles/discussions/1"})
        return self.reply(404, {"error": f"nothing at {path}"})

    do_GET = do_POST = do_PUT = handle_request

    def reply(self, status: int, content: dict):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


class FakeHub(ThreadingHTTPServer):
    """A server on this computer that keeps what is committed to it.

    `refuse` is a status and a part of the path: requests there get that status.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refuse = None
        self.requests, self.created, self.verified, self.commits = [], [], [], []
        self.storage, self.files = {}, {}

    def commit(self, path: str, lines: list[dict]):
        self.commits.append((path, lines[0]["value"]["summary"]))
        for line in lines[1:]:
            value = line["value"]
            content = self.storage[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            self.files[value["path"]] = content


@pytest.fixture
def hub(monkeypatch):
    """A `FakeHub` in the place of the real one."""
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # Large files then go through plain HTTP, which the server speaks.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        server.shutdown()


def test_every_file_arrives_byte_for_byte(model, tokenizer, tmp_path, hub):
    (tmp_path / "optimizer.pt").write_text("not for others")
    commit = push_to_hub(
        model,
        tokenizer,
        "user/titles",
        tmp_path,
        private=True,
        token="hf_secret",
        commit_message="First",
        license="mit",
    )
    assert hub.files == {name: (tmp_path / name).read_bytes() for name in FILES}
    assert hub.verified == [hashlib.sha256(hub.files["model.safetensors"]).hexdigest()]
    assert hub.commits == [("/api/models/user/titles/commit/main", "First")]
    assert (hub.created[0]["organization"], hub.created[0]["name"]) == ("user", "titles")
    assert hub.created[0]["visibility"] == "private"
    tokens = {token for _, path, token in hub.requests if path.startswith(("/api/repos", "/api/models"))}
    assert tokens == {"Bearer hf_secret"}
    assert commit.commit_url.startswith(f"{hub.url}/user/titles/commit/")
    assert b"license: mit" in hub.files["README.md"]


def test_a_branch_is_made_and_a_pull_request_opened(model, tokenizer, tmp_path, hub):
    push_to_hub(model, tokenizer, "user/titles", revision="v2", token=False)
    assert ("POST", "/api/models/user/titles/branch/v2", None) in hub.requests
    assert hub.commits == [("/api/models/user/titles/commit/v2", "Upload model")]
    assert sorted(hub.files) == FILES
    commit = push_to_hub(model, tokenizer, "user/titles", create_pr=True, token=False)
    assert hub.requests[-1][1] == "/api/models/user/titles/commit/main?create_pr=1"
    assert commit.pr_url.endswith("/discussions/1")


def test_contradictions_are_refused_before_the_hub_is_asked(model, tokenizer, tmp_path, hub):
    with pytest.raises(ValueError, match="create_pr opens a pull request to main and revision='v2' is not"):
        push_to_hub(model, tokenizer, "user/titles", tmp_path / "titles", revision="v2", create_pr=True)
    with pytest.raises(ValueError, match="repo_id='titles'"):
        push_to_hub(model, tokenizer, "titles", tmp_path / "titles")
    assert hub.requests == [] and not (tmp_path / "titles").exists()


@pytest.mark.parametrize(
    ("status", "where"), [(401, "/create"), (403, "/create"), (500, "/create"), (403, "/commit/"), (500, "/commit/")]
)
def test_a_refusal_is_told_and_the_folder_stays(status, where, model, tokenizer, tmp_path, hub):
    hub.refuse = (status, where)
    with pytest.raises(HfHubHTTPError) as refused:
        push_to_hub(model, tokenizer, "user/titles", tmp_path, token=False)
    assert str(status) in str(refused.value) and "the server says no" in str(refused.value)
    assert ("hf auth login" in str(refused.value)) == (status in (401, 403))
    assert hub.files == {}
    assert sorted(os.listdir(tmp_path)) == FILES
    assert write(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), tokenizer) == write(model, tokenizer)


@pytest.fixture
def script(model, tokenizer, tmp_path, monkeypatch, capsys):
    """Runs scripts/push_to_hub.py on a trained model and returns what it printed."""
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")

    def run(*args) -> str:
        arguments = ["--model_name_or_path", tmp_path / "trained", "--repo_id", "user/titles", *args]
        monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "scripts" / "push_to_hub.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_dry_run_shows_what_would_go_up_and_sends_nothing(script, tmp_path, monkeypatch, hub):
    def no_network(*args):
        raise AssertionError("a dry run has no business on the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    output = script(
        "--dry_run", "--output_dir", tmp_path / "out", "--revision", "v2", "--language", "zh",
        "--metrics_file", tmp_path / "scores.json", "--dataset_name", "held-out pairs",
    )  # fmt: skip
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in FILES}
    listed = dict(reversed(line.split()) for line in output.splitlines() if line[:15].strip() and line[15:] in FILES)
    assert {name: int(size.replace(",", "")) for name, size in listed.items()} == sizes
    assert f"{sum(sizes.values()):,}  bytes in {len(FILES)} files" in output
    assert f"Card: {tmp_path / 'out' / 'README.md'}" in output
    assert f"{hub.url}/user/titles, revision v2" in output and "nothing was sent" in output
    assert hub.requests == []
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.language == ["zh"] and len(card.data.eval_results) == 4


def test_the_report_in_the_folder_of_the_model_gives_its_card_pictures(script, tmp_path):
    (tmp_path / "trained" / "report").mkdir()
    script("--dry_run", "--output_dir", tmp_path / "none")
    (tmp_path / "trained" / "report" / "positions.png").write_bytes(b"a picture")
    assert "positions.png" in script("--dry_run", "--output_dir", tmp_path / "out")
    assert (tmp_path / "out" / "positions.png").read_bytes() == b"a picture"
    assert "](positions.png)" in (tmp_path / "out" / "README.md").read_text()
    assert "![" not in (tmp_path / "none" / "README.md").read_text()


def test_a_dry_run_without_a_folder_leaves_one_to_look_at(script, hub):
    card = Path(re.search(r"^Card: (.*)$", script("--dry_run"), re.MULTILINE)[1])
    assert sorted(os.listdir(card.parent)) == FILES
    shutil.rmtree(card.parent)


def test_the_script_uploads(script, tmp_path, hub):
    output = script("--output_dir", tmp_path / "out", "--commit_message", "Again")
    assert hub.files == {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    assert hub.commits == [("/api/models/user/titles/commit/main", "Again")]
    assert f"Uploaded: {hub.url}/user/titles/commit/" in output
    assert "/discussions/1" in script("--create_pr")


def test_what_the_script_uploads_is_the_trained_model(script, tmp_path, hub, model, tokenizer):
    script()
    (tmp_path / "down").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "down" / name).write_bytes(content)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "down")
    assert write(loaded, AutoTokenizer.from_pretrained(tmp_path / "down")) == write(model, tokenizer)
