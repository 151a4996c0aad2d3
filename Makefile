# make demo   a trained model of spoken digits, with sounds, pictures and figures
# make test   lint, types and the whole test suite
# make bench  how fast the parts are, against torch, torchaudio, librosa and plain code: benchmarks/results/bench.md
# make bench-peers DATA_DIR=DIR   MultiVae's models on the Free Spoken Digit Dataset in DIR, judged and timed beside ours
PYTHON ?= python3
SOURCE ?= synth
VENV := .venv
BIN := $(VENV)/bin
DATA_DIR ?=

.PHONY: demo test lint format table bench bench-peers clean

demo: $(VENV)/demo
	$(BIN)/python -m recipes.spoken_digits --source $(SOURCE) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

test: $(VENV)/dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

table: $(VENV)/demo  # the README's results: three seeds on the real recordings
	$(BIN)/python -m benchmarks.quality.spoken_digits --source $(SOURCE) $(if $(DATA_DIR),--data-dir $(DATA_DIR))

bench: $(VENV)/demo  # longer where bf16 is emulated
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.bench $(if $(DATA_DIR),--data-dir $(DATA_DIR))

bench-peers: $(VENV)/peers  # half an hour on a free core; what is in benchmarks/results/ already is not run again
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers.side_by_side $(if $(DATA_DIR),--data-dir $(DATA_DIR))
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers.accuracy $(if $(DATA_DIR),--data-dir $(DATA_DIR))

$(VENV)/demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[bench]'
	touch $@

$(VENV)/dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/demo $(VENV)/peers

$(VENV)/peers: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[bench,peers]'
	touch $@ $(VENV)/demo

clean:
	rm -rf $(VENV) .cache runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
