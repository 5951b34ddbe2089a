# `make demo` and `make test` need Python 3.10 or newer and nothing else; they install into .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
# Packages are installed without being compiled, which would take as long again: what is imported is compiled then, once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types wheel docs install clean

demo: install
	$(BIN)/compress-env search --budget macs=0.125 --evaluations 100 --seed 0 --finetune-epochs 40 --out runs/demo --resume

test: install
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	.ci/in-tree $(CURDIR)/$(BIN)/lint-imports --no-cache

types: install
	.ci/in-tree $(CURDIR)/$(BIN)/mypy --cache-dir ..

wheel: install
	.ci/wheel

docs: .venv/docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -d build/doctrees docs build/site
	$(BIN)/python .ci/site build/site

install: .venv/installed

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[docs]'
	touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .mypy_cache runs build *.egg-info
