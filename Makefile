# make demo, make test: each works on a fresh machine with Python 3.10+ and brings its own .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The set that was tried together. torchvision without its dependencies: its wheel asks for one
# exact torch build and would otherwise replace the one that is installed.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

.PHONY: demo test test-all lint typing clean

demo: $(VENV)/.base
	$(BIN)/crossband demo

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# A stamp per installed set, renewed when the requirements change.
$(VENV)/.torch: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install --no-deps "$(TORCHVISION)"
	touch $@

$(VENV)/.base: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/python -m pip install -e ".[all]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml setup.py
	$(BIN)/python -m pip install -e ".[dev]"
	touch $@ $(VENV)/.base

# For editors and type checkers: pyright reads [tool.pyright]; mypy wants MYPYPATH=.typing.
typing:
	mkdir -p .typing
	ln -sfn .. .typing/crossband

clean:
	rm -rf $(VENV) build dist .typing *.egg-info .pytest_cache .hypothesis .ruff_cache
