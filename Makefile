# make demo    set everything up and ask the sample report a question
# make test    set up, then lint, types and all tests
# make test-oldest  the tests that touch transformers, on the oldest supported release
# make bench-smoke   every `infinipot bench` command, reading.py (cheap, report) and gpu_reading.py, small: figures mean nothing
# make models  fetch the weights that the demo and some tests use

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
QUESTION ?= What did the replacement pump at Tarnbrook pumping station cost?

.PHONY: install demo test test-oldest bench-smoke lint types models samples clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: run make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

models: $(READY)
	$(BIN)/infinipot models get qwen2.5-coder-0.5b
	$(BIN)/infinipot models get smollm2-135m

demo: $(READY)
	$(BIN)/infinipot models get qwen2.5-coder-0.5b
	@echo
	@echo '$$ infinipot ask examples/documents/hollin_valley.pdf "$(QUESTION)"'
	@$(BIN)/infinipot ask examples/documents/hollin_valley.pdf "$(QUESTION)"

test: lint types $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.oldest/.ready: $(READY)
	rm -rf .oldest
	$(BIN)/python -m pip install --quiet --target .oldest transformers==5.3.0 numpy==$$($(BIN)/python -c 'import numpy; print(numpy.__version__)')
	@touch .oldest/.ready

test-oldest: .oldest/.ready
	PYTHONPATH=.oldest $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not weights" tests/models tests/pot tests/answering tests/memory tests/test_cli.py

SMOKE := .bench-smoke
BENCH := $(BIN)/infinipot bench
LOOP  := truncate,random,snapkv,tova,sirllm,h2o,keydiff,expected-attention
OWN   := own:truncate,own:streaming,own:snapkv,own:h2o,own:keydiff,own:expected-attention
FERRY := examples/documents/merrow_ferry.pdf

bench-smoke: $(READY)
	$(BIN)/infinipot models get smollm2-135m
	rm -rf $(SMOKE)
	$(BENCH) needle --model smollm2-135m --lengths 1k --depths 0,100 --kinds number --budget 600 --policies full,recall,infinipot,streaming --out $(SMOKE)
	$(BENCH) needle --model smollm2-135m --lengths 1k --depths 50 --kinds number --budget 600 --policies $(LOOP),$(OWN) --out $(SMOKE)
	$(BENCH) qa $(FERRY) --model smollm2-135m --budget 450 --limit 4 --policies full,infinipot,streaming --out $(SMOKE)
	$(BENCH) qa $(FERRY) --model smollm2-135m --budget 450 --limit 4 --policies full,infinipot,own:snapkv --hidden --out $(SMOKE)
	$(BENCH) ablation $(FERRY) --model smollm2-135m --budget 450 --limit 1 --grids components,alpha,kept,span,reduce --out $(SMOKE)
	$(BENCH) hit-rate $(FERRY) --model smollm2-135m --budget 450 --limit 2 --out $(SMOKE)
	$(BIN)/python benchmarks/reading.py cheap --model smollm2-135m --tokens 1500 --budget 600 --rounds 1 --out $(SMOKE)/reading.jsonl
	$(BIN)/python benchmarks/reading.py report --out $(SMOKE)/reading.jsonl
	$(BIN)/python benchmarks/gpu_reading.py --device cpu --tiny --out $(SMOKE)/gpu.jsonl

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

samples: $(READY)
	$(BIN)/python examples/documents/render.py

clean:
	rm -rf $(VENV) .oldest dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .bench-smoke
