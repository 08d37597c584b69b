# One command each; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Python compiles what it imports, a fraction of the eighteen thousand files that pip would compile.
PIP := $(BIN)/pip install -q --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE
TORCH ?= torch==2.13.0
JOBS ?= $(shell nproc)
# Our folders must not hide other packages of the same name (kernels, ops, ...).
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help serve test test-py soak lint format wheel bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

# What builds C++; it comes first, so that the compiler can work while pip fetches the rest.
$(VENV)/.tools:
	@command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 \
	  || { echo "tokenspeed needs a C++20 compiler: install g++ 12 or clang 15 or newer (Debian: apt-get install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

$(VENV)/.torch: | $(VENV)/.tools
	$(PIP) $(TORCH)
	@touch $@

SOURCES := $(shell find scheduler kernels/csrc -name '*.cpp' -o -name '*.h' -o -name 'CMakeLists.txt')

$(STAMP): $(VENV)/.torch pyproject.toml $(SOURCES)
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PIP) --no-build-isolation -e '.[test,lint]'
	@touch $@

serve: $(STAMP) ## set up, then serve SmolLM2-135M-Instruct on http://127.0.0.1:8000
	$(BIN)/tokenspeed serve smollm2

test: ## set up, then run every test
	$(MAKE) -j 2 $(STAMP) test-cpp
	$(MAKE) test-py

test-py: $(STAMP) ## the Python tests only
	$(BIN)/pytest -m 'not soak' -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP) ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p tokenspeed_core
	find scheduler kernels -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMP) ## rewrite sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find scheduler kernels -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

wheel: $(VENV)/.torch ## build a wheel into dist/ that needs no compiler to install
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps -w dist .

bench: $(STAMP) ## print every benchmark's table
	@for file in tests/bench/bench_*.py; do echo "== $$file"; $(BIN)/python $$file; done

clean: ## remove what the build made
	rm -rf build dist $(VENV)

SANITIZE := build/sanitize
FUZZ := build/fuzz
# A dozen sources a compiler: a third of the time.
UNITY := -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=12
FUZZ_COUNT ?= 100000
FUZZ_EVENTS ?= 10000000
SANITIZED_EVENTS ?= 1000000
SANITIZED_LEDGER ?= OFF
LOOP_EVENTS ?= 250000

.PHONY: test-cpp build-sanitize build-fuzz ctest-sanitize ctest-fuzz mutants tsan

build-sanitize:
	cmake -G Ninja -S scheduler -B $(SANITIZE) -DTOKENSPEED_DEV=ON -DTOKENSPEED_SANITIZE=ON \
	  -DTOKENSPEED_TESTS=ON -DTOKENSPEED_MODULES=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo $(UNITY) \
	  -DFUZZ_COUNT=$(FUZZ_COUNT) -DFUZZ_EVENTS=$(SANITIZED_EVENTS) -DLEDGER=$(SANITIZED_LEDGER) \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	cmake --build $(SANITIZE) -j $(JOBS)

# Optimised and without sanitizers: ten times the events, and all worlds of the ledger.
FUZZ_TARGETS := fuzz_scheduler check_ledger
build-fuzz:
	cmake -G Ninja -S scheduler -B $(FUZZ) -DTOKENSPEED_TESTS=ON -DTOKENSPEED_MODULES=OFF \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO='-O3 -g1 -DNDEBUG -Wno-maybe-uninitialized' $(UNITY) \
	  -DFUZZ_EVENTS=$(FUZZ_EVENTS) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	cmake --build $(FUZZ) -j $(JOBS) --target $(FUZZ_TARGETS)

test-cpp: $(VENV)/.tools ## the C++ tests and fuzz drivers: sanitized, then 10^7 events at full speed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) build-sanitize
	PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) build-fuzz
	$(MAKE) ctest-sanitize ctest-fuzz

# Each ends in one long test: together, under `make -j 2`, they leave no core idle.
ctest-sanitize:
	$(BIN)/ctest --test-dir $(SANITIZE) --output-on-failure -j 2

ctest-fuzz:
	$(BIN)/ctest --test-dir $(FUZZ) --verbose -j 2 --timeout 100000 -R 'check_ledger|fuzz_scheduler'

mutants: $(STAMP) ## twenty-nine seeded mistakes in the core: the fuzzer or a unit test must find each
	PATH="$(CURDIR)/$(BIN):$$PATH" $(MAKE) build-fuzz FUZZ=build/mutants UNITY= FUZZ_TARGETS='fuzz_scheduler check_ledger test_kv test_host_pool'
	$(BIN)/python tests/scheduler/core_mutants.py build/mutants

# The process has one thread of ours; libzmq brings its own.
tsan: $(STAMP) ## the process's tests and its loop with the scheduler under the thread sanitizer
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -G Ninja -S scheduler -B build/tsan -DTOKENSPEED_SANITIZE=ON \
	  -DTOKENSPEED_SANITIZERS=thread -DTOKENSPEED_MODULES=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > /dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/tsan --target tokenspeed-scheduler
	TSAN_OPTIONS="suppressions=$(CURDIR)/tests/scheduler/native/thread_sanitizer.supp exitcode=66" \
	  $(BIN)/pytest tests/scheduler/test_process.py tests/scheduler/test_faults.py \
	  tests/scheduler/test_replay.py tests/scheduler/test_loop.py \
	  --scheduler build/tsan/tokenspeed-scheduler --events $(LOOP_EVENTS)

soak: ## 10^7 sanitized and 10^9 fast events, the sanitized ledger, the mutants, the long Python tests
	$(MAKE) test-cpp FUZZ_COUNT=10000000 SANITIZED_EVENTS=10000000 \
	  SANITIZED_LEDGER=ON FUZZ_EVENTS=1000000000
	$(FUZZ)/native/check_ledger host 24
	$(MAKE) mutants tsan LOOP_EVENTS=10000000
	$(BIN)/pytest -m soak
