# flowmag_nb: everything a person needs is one of these; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
PRESET ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
METADATA := settings.ini setup.py pyproject.toml .ci/constraints.txt

.PHONY: help demo test notebooks reproduce bench lab clean
.DEFAULT_GOAL := help

help: ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(VENV)/user.stamp ## magnify the bundled clip into figures/demo
	@echo "demo: magnifying the bundled clip"
	@$(BIN)/flowmag demo

test: $(VENV)/dev.stamp ## check everything; ends in "N passed, N failed"
	@$(BIN)/python .ci/gate.py

notebooks: $(VENV)/dev.stamp ## clean the notebooks, export the modules, write the README
	@echo "notebooks: clean, export, README"
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(BIN)/python -m flowmag_nb.readme

reproduce: $(VENV)/dev.stamp ## make the paper's tables and figures (PRESET=smoke, demo or paper)
	@$(BIN)/flowmag reproduce --preset $(PRESET)

bench: $(VENV)/dev.stamp ## run the benchmark notebooks into reports/runs
	@$(BIN)/python .ci/gate.py bench

lab: $(VENV)/dev.stamp ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=nbs

clean: ## remove the virtual environment and build leftovers
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "flowmag_nb needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "setup: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# A stamp is younger than the metadata it was installed from, so that a second run installs nothing.
$(VENV)/user.stamp: $(METADATA) | $(BIN)/python
	@echo "setup: installing flowmag_nb (torch included, some minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(METADATA) | $(BIN)/python
	@echo "setup: installing flowmag_nb and what its tests need (some minutes the first time)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/user.stamp
