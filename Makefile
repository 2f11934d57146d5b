# Everything a fresh machine needs: Python 3.11+, a C++17 compiler, make. `make demo` and `make test` do the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt $(wildcard kernels/CMakeLists.txt kernels/src/*)

.PHONY: demo test torture check format lint types bench bench-peers bench-guards verify-math clean

demo: $(VENV)/.local
	$(BIN)/isonomy demo

test: $(VENV)/.dev
	$(BIN)/pytest -n auto

check: $(VENV)/.dev lint types
	$(BIN)/pytest -n auto

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev
	$(BIN)/python -m bench

# Thousands of kill -9 at logs under load, and every check that takes samples otherwise: minutes.
torture: $(VENV)/.dev
	$(BIN)/python -m tests.torture
	ISONOMY_TORTURE=1 $(BIN)/pytest tests/replay/test_verify.py tests/replay/test_durability.py

# llama.cpp for the comparison in bench/, compiled for this machine: minutes. Needs CMake.
bench-peers:
	$(PYTHON) -m venv build/peers
	CMAKE_ARGS=-DGGML_NATIVE=ON build/peers/bin/pip install --quiet numpy gguf llama-cpp-python

# Other guards for the comparison in bench/, each in an environment of its own: gigabytes, minutes.
GUARDS := llm-guard openai-guardrails nemoguardrails litellm langchain guardrails-ai
bench-guards:
	for name in $(GUARDS); do \
		$(PYTHON) -m venv build/guards/$$name && \
		build/guards/$$name/bin/pip install --quiet $$name 'torch==2.13.0' || exit 1; \
	done

# Our clients against llama-cpp-python's server, with the demo model.
test-foreign: $(VENV)/.dev
	@build/peers/bin/python -c 'import gguf, llama_cpp.server.app' 2>/dev/null || { \
		echo "llama-cpp-python's server is not installed. Run:" && echo "  make bench-peers" && \
		echo "  build/peers/bin/pip install 'llama-cpp-python[server]'" && exit 1; }
	$(BIN)/pytest tests/foreign/llama_cpp_server.py

# All 2^32 inputs of each correctly rounded function against MPFR: minutes on two cores. Needs CMake and MPFR
# (apt-get install cmake libmpfr-dev).
verify-math:
	cmake -S kernels/verify -B build/verify -DCMAKE_BUILD_TYPE=Release
	cmake --build build/verify --parallel
	build/verify/verify-math

# Stamps: a changed dependency or C++ source installs anew.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.local: $(SOURCES) | $(BIN)/pip
	@echo "Installing into $(VENV) (the first time takes about a minute) ..."
	$(PIP) -e '.[local]'
	@touch $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/pip
	@echo "Installing into $(VENV) with everything that the tests use ..."
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.local

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
