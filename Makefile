# Postbus. `make` lists the targets. Needs Python 3.11 or newer; sets up everything else in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS_VENV := .venv-stubs
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: image help setup run dev demo demo-cluster bench bench-cluster test test-slow chaos chaos-cluster simulate simulate-mutants lint types layers proto-lint stubs stubs-check clients-check check deploy-tools deploy-check clean deploy-live

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(INSTALLED) ## Sets up .venv with everything pinned in requirements.lock.

$(INSTALLED): pyproject.toml clients/python/pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Postbus needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (once, about half a minute)"
# Interrupted, venv leaves an environment without pip behind.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
	  --editable clients/python --editable . --group dev
	@touch $@

run: $(INSTALLED) ## Starts a durable single-node bus in ./postbus-data.
	@POSTBUS_LOG_FORMAT=$${POSTBUS_LOG_FORMAT:-console} exec $(BIN)/postbus serve $(ARGS)

dev: $(INSTALLED) ## Starts three nodes that are one bus in ./postbus-cluster, and shows what they do.
	@exec $(BIN)/postbus dev $(ARGS)

demo: $(INSTALLED) ## Streams a year of real flights through a bus, kills a group member, and counts.
	@$(BIN)/python clients/python/examples/flights/demo.py

demo-cluster: $(INSTALLED) ## The same through three nodes, with a leader killed and a rolling restart.
	@$(BIN)/python clients/python/examples/flights/cluster_demo.py

bench: $(INSTALLED) ## Measures a node on this machine; ARGS=--quick for a short run.
	@$(BIN)/python -m bench.run $(ARGS)

bench-cluster: $(INSTALLED) ## Measures three nodes on this machine; ARGS=--quick for a short run.
	@$(BIN)/python -m bench.cluster $(ARGS)

# Two at a time, because most wait for other processes.
test: $(INSTALLED) ## Runs the tests.
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-slow: $(INSTALLED) ## Runs the tests that take minutes.
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

chaos: $(INSTALLED) ## Kills a broker again and again under load (POSTBUS_CHAOS_SECONDS, POSTBUS_CHAOS_SEED).
	@POSTBUS_CHAOS_SECONDS=$${POSTBUS_CHAOS_SECONDS:-120} POSTBUS_CHAOS_SEED=$${POSTBUS_CHAOS_SEED:-$$(date +%s)} \
	  $(BIN)/python -m pytest -q tests/chaos/test_kill.py $(ARGS)

chaos-cluster: $(INSTALLED) ## Faults of all kinds in three brokers under load (POSTBUS_CHAOS_SECONDS, POSTBUS_CHAOS_SEED).
	@POSTBUS_CHAOS_SECONDS=$${POSTBUS_CHAOS_SECONDS:-300} POSTBUS_CHAOS_SEED=$${POSTBUS_CHAOS_SEED:-$$(date +%s)} \
	  $(BIN)/python -m pytest -q -s -m slow tests/cluster/test_chaos.py $(ARGS)

deploy-live: $(INSTALLED) ## A release's life on a real Kubernetes control plane, built once (needs root, Go, helm, kubectl, etcd).
	@$(BIN)/python tests/deploy/live/run.py $(ARGS)

simulate: $(INSTALLED) ## Simulates clusters under faults (POSTBUS_SIM_SEEDS how many, POSTBUS_SIM_SEED to replay one).
	@POSTBUS_SIM_SEEDS=$${POSTBUS_SIM_SEEDS:-100} PYTHONHASHSEED=0 $(BIN)/python -m pytest -q tests/simulation $(ARGS)

simulate-mutants: $(INSTALLED) ## Puts known bugs back, and checks that the simulation finds each.
	@POSTBUS_SIM_MUTANTS=1 PYTHONHASHSEED=0 $(BIN)/python -m pytest -q tests/simulation/test_mutants.py $(ARGS)

lint: $(INSTALLED) ## Checks style.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED) ## Checks types.
	@$(BIN)/mypy

layers: $(INSTALLED) ## Checks that each layer imports only from those below.
	@$(BIN)/lint-imports

image: ## Builds the container image (buildah, podman or docker; BASES, BASE, PIP_INDEX_URL as deploy/build-image says).
	@deploy/build-image $(ARGS)

proto-lint: $(INSTALLED) ## Checks the protos' style, and that they break nobody since the committed baseline.
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against baseline.binpb

$(STUBS_VENV)/.installed: requirements-stubs.lock
	@$(STUBS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(STUBS_VENV)
	@$(STUBS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-stubs.lock
	@touch $@

stubs: $(STUBS_VENV)/.installed ## Generates the Python stubs from proto/.
	@proto/generate $(STUBS_VENV)/bin/python

stubs-check: $(STUBS_VENV)/.installed ## Fails if the committed stubs differ from what proto/ gives.
	@proto/check-drift $(STUBS_VENV)/bin/python

clients-check: $(INSTALLED) ## Fails if the other languages' stubs differ from what proto/ gives. Needs Go.
	@clients/check-drift

check: lint types layers proto-lint stubs-check clients-check ## All the checks that are not tests.

deploy-tools: ## Installs what the tests of deploy/ need into .tools (minutes, once). Needs Go.
	@tests/deploy/tools $(ARGS)

deploy-check: $(INSTALLED) ## Checks all of deploy/ that needs no control plane; tools that are missing are named.
	@$(BIN)/python -m pytest -q tests/deploy $(ARGS)

clean: ## Removes the environments and caches.
	rm -rf $(VENV) $(STUBS_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
