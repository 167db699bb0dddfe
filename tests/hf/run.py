"""Runs transformers' own common tests on our model, configuration and tokenizers.

Their test modules are not part of the installed package and not of this repository: they come from the source
distribution of the installed version, which pip fetches once.

    python tests/hf/run.py [--folder .hf_tests] [arguments of pytest]
"""

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import transformers

TEST_MODULES = [
    "test_configuration_common.py",
    "test_modeling_common.py",
    "test_sentencepiece_backend_mixin.py",
    "test_tokenization_common.py",
    "test_tokenizers_backend_mixin.py",
]
# What the modules import or read from subfolders, which the distribution leaves out.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # The settings that every configuration has, each with a value that is not its default.
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    "fixtures/sample_text.txt": "Any text.\n",
}
# Their helpers find the fixtures by a folder whose name ends in "tests".
PACKAGE = "transformers_tests"


def fetch(folder: Path) -> Path:
    """The source distribution in `folder`, downloaded if it is not there."""
    archive = folder / f"transformers-{transformers.__version__}.tar.gz"
    if not archive.exists():
        requirement = f"transformers=={transformers.__version__}"
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
    return archive


def unpack(archive: Path, package: Path):
    """Writes the test modules and what they need into the folder `package`."""
    for name, content in STUBS.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(content, encoding="utf-8")
    (package / "__init__.py").touch()
    with tarfile.open(archive) as tar:
        for name in TEST_MODULES:
            member = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/tests/{name}")
            (package / name).write_bytes(member.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".hf_tests"), help="where their tests are kept")
    arguments, pytest_arguments = parser.parse_known_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    unpack(fetch(folder), folder / PACKAGE)
    tests = Path(__file__).resolve().parent / "common.py"
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
    }
    # Their marks are declared in a file of theirs that we do not have.
    options = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command = [sys.executable, "-m", "pytest", *options, str(tests), *pytest_arguments]
    # From our root, so that our pytest settings hold: deprecated uses of transformers and torch are errors.
    raise SystemExit(subprocess.run(command, env=environment, cwd=tests.parents[2]).returncode)


if __name__ == "__main__":
    main()
