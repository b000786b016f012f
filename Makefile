# make quickstart: train and score the embedded default; make test: lint, types, tests. Both install what they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint types install clean

quickstart: install
	$(BIN)/python -m lightning_modules.fit --config conf/quickstart.yaml
	$(BIN)/undertone chat runs/quickstart/bundle --once --audio "$$(ls -d .cache/undertone/corpora/*-test-*/ | head -1)audio/00000.wav"

test: install lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An editable install maps the rooms by a finder that type checkers do not follow; links in build/ show them the package.
types: install
	rm -rf build/types && mkdir -p build/types/undertone
	cd build/types/undertone && ln -s ../../../src/undertone/* . && for room in adapters conf data demo encoders evaluation lightning_modules llms; do ln -s ../../../$$room $$room; done
	MYPYPATH=build/types $(BIN)/mypy --config-file pyproject.toml -p undertone

install: $(BIN)/.installed

# torch below 2.14 has a CPU build on PyPI; a newer one pulls gigabytes of CUDA.
$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q "torch>=2.6,<2.14"
	$(BIN)/python -m pip install -q -e ".[demo,deepspeed,test]"
	touch $@

clean:
	rm -rf .venv build runs .cache
