# make quickstart   trains, scores and shows a small model on text that is on every machine
# make test         checks style and types, and runs the tests
# make test-e2e     runs the tests of whole programs: killed and resumed, in several processes, from the wheel alone
# make test-newest  runs the tests with the newest of everything that pip finds, in .venv-newest
# make test-oldest  runs the tests with the lower bounds of pyproject.toml, in .venv-oldest
# make test-hf      runs transformers' own common tests on the model (fetches their source distribution)
# make benchmark    compares speed with other libraries (installs them into .peers; half an hour)
# make format       formats the code and writes docs/api.md
# make clean        removes what the targets above made
#
# They install everything themselves, into .venv if nothing else is said.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := bin/pip install --quiet --disable-pip-version-check
# Where pip's newest torch is one for GPUs, with gigabytes of libraries: make test-newest TORCH=torch==2.13.0
TORCH ?= torch
export TOKENIZERS_PARALLELISM ?= false

.PHONY: quickstart test test-e2e test-newest test-oldest test-hf benchmark format clean

quickstart: $(VENV)/.installed
	$(BIN)/python examples/docstring_pairs.py --output_dir quickstart/data
	$(BIN)/python scripts/train.py scripts/quickstart.yaml
	$(BIN)/python scripts/score.py quickstart/model --test_file quickstart/data/test.jsonl \
		--num_examples 6 --output_dir quickstart/scores
	$(BIN)/python scripts/report.py quickstart/model

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-e2e: $(VENV)/.installed
	$(BIN)/python -m pytest -m e2e --numprocesses 2

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/$(PIP_INSTALL) --upgrade --upgrade-strategy eager '$(TORCH)' --editable '.[test]'
# Beyond our upper bound, too: pip says that they do not go together, and the tests whether they do.
	.venv-newest/$(PIP_INSTALL) --upgrade '$(TORCH)' transformers
	.venv-newest/bin/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/$(PIP_INSTALL) --constraint constraints-oldest.txt --editable '.[test]'
	.venv-oldest/bin/python -m pytest -m 'not slow' --numprocesses 2 --dist loadfile

test-hf: $(VENV)/.installed
	$(BIN)/python tests/hf/run.py -q

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/roofline.py --output output/roofline.json
	$(BIN)/python benchmarks/decode.py --setup
	$(BIN)/python benchmarks/decode.py --output output/decode.json
	$(BIN)/python benchmarks/train.py --output output/train.json

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python scripts/write_api_docs.py

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .hf_tests quickstart .pytest_cache .ruff_cache .mypy_cache

# constraints.txt pins the versions the tests ran with, so that a fresh machine gets the same.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/$(PIP_INSTALL) --constraint constraints.txt --editable '.[test]'
	touch $@
