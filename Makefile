# `make` alone says what there is to make.
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
COMPILE = .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-header --no-annotate

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: .venv/installed ## create .venv and install everything, with hashes

# Debian splits ensurepip from python3: without it the environment borrows the pip that is there.
.venv/installed: requirements.txt pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv .venv 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@if $(PY) -m pip --version >/dev/null 2>&1; then pip="$(PY) -m pip"; \
	 else pip="$(PYTHON) -m pip --python $(PY)"; fi; \
	 echo "installing into .venv (a minute the first time)"; \
	 $$pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt && \
	 $$pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: install ## run the whole pipeline; Ctrl-C stops it
	@exec $(PY) -m logging_service.cli up

check: install ## lint, types, imports, dead code, vulnerabilities: about a minute
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/deptry .
	.venv/bin/vulture
	$(PY) -m pip check 2>/dev/null || $(PYTHON) -m pip --python $(PY) check
	$(PY) tests/check_tree.py
	$(PY) tests/check_vulnerabilities.py

test: check ## every check, then every test against real servers
	$(PY) -m pytest -q -n 2 --dist loadfile

bench: install ## the published figures: a table, then one line of JSON
	@$(PY) bench/run.py

bench-query: install ## how long queries take on 1 and 10 million events: 15 minutes, 20 GB
	@$(PY) bench/query.py

bench-redaction: install ## what redaction finds of a labelled corpus, and what it costs
	@$(PY) bench/redaction.py

chaos: install ## the crash run: make chaos MINUTES=5 SEED=1 (both optional)
	@$(PY) chaos/run.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

lock: install ## write the requirements files anew from pyproject.toml
	$(COMPILE) --all-extras pyproject.toml -o requirements.txt
	$(COMPILE) pyproject.toml -o logging_service/requirements.txt
	$(COMPILE) --extra reviewer --extra anthropic pyproject.toml -o gateway/requirements.txt

clean-data: install ## ask, stop what runs, remove DATA_DIR
	@$(PY) -m logging_service.cli clean-data

.PHONY: help install up check test bench bench-query bench-redaction chaos lock clean-data
