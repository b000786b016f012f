# make quickstart: train and score the embedded default; make test: lint, types, tests. Both install what they need.
PYTHON ?= python3
BIN := .venv/bin
RELEASE := build/release/bin

.PHONY: quickstart test lint types docs install lock lock-cpu audit clean

quickstart: install
	$(BIN)/python -m lightning_modules.fit --config conf/quickstart.yaml
	$(BIN)/sottovoce chat runs/quickstart/bundle --once --audio "$$(ls -d .cache/sottovoce/corpora/*-test-*/ | head -1)audio/00000.wav"

test: install lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

types: install
	$(BIN)/mypy

docs: install  # guide and API reference: build/site/index.html
	$(BIN)/python -m pip install -q -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(BIN)/.installed

# torch below 2.14, which is what was tested. PyPI has it with CUDA for Linux; PIP_INDEX_URL or PIP_FIND_LINKS may name its CPU build.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "torch>=2.6,<2.14"
	$(BIN)/python -m pip install -q -e ".[demo,test]"
	touch $@

# Exact versions with hashes, for installs that must be the same everywhere:
#   pip install --require-hashes -r locks/requirements.txt && pip install --no-deps -e .
LOCK := $(RELEASE)/uv pip compile pyproject.toml --extra demo --extra test --generate-hashes --no-emit-index-url --no-annotate

lock: $(RELEASE)/uv  # from PyPI, for Python 3.10 to 3.12; PyPI's torch for Linux brings CUDA
	$(LOCK) --universal --python-version 3.10 -q -o locks/requirements.txt

lock-cpu: $(RELEASE)/uv  # Linux without a GPU; UV_FIND_LINKS names the folder or page that has torch's CPU build
	$(LOCK) --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --no-emit-find-links -P torch==2.13.0+cpu -q -o locks/requirements-cpu.txt

# Before a release: known vulnerabilities of what is locked. Strict: what could not be looked up is a failure, too.
audit: $(RELEASE)/uv
	$(RELEASE)/pip-audit --strict --disable-pip --require-hashes -r locks/requirements.txt

$(RELEASE)/uv:
	$(PYTHON) -m venv build/release
	$(RELEASE)/python -m pip install -q "uv>=0.9" "pip-audit>=2.9"
	touch $@

clean:
	rm -rf .venv build runs .cache
