# The commands of this repository. `make help` lists them.

# The first on the path that is new enough; make PYTHON=/path/to/python3 takes another.
PYTHON ?= $(or $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
	&& command -v $$python && break; done),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMPS := target/stamps
# Two cores run two clusters; more only wait for each other.
PYTEST_WORKERS ?= 2
# How long `make soak` and `make test` play simulated clusters.
SOAK_SECONDS ?= 600
SIM_SECONDS ?= 15
# Where `make test` begins; `make soak` begins anywhere.
SIM_FIRST ?= 5000000

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find crates -name '*.rs' -o -name Cargo.toml -o -name '*.yaml' -o -name '*.css')
PYTHON_SOURCES := pyproject.toml $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint test-rust test-sim test-python conformance conformance-all bench soak races fmt clean

help: ## List the commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

build: $(BIN)/oxidask target/release/oxidask ## Python environment with the wheel, and the Python-free binary.

$(STAMPS):
	@mkdir -p $@

# Everything Python: Dask, what the tests and the demo use, and the tools.
$(STAMPS)/environment: tests/requirements.txt | $(STAMPS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "oxidask needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v cargo > /dev/null || { echo "oxidask needs a Rust toolchain (cargo)" >&2; exit 1; }
	@command -v cc > /dev/null || { echo "oxidask needs a C compiler (cc)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	@touch $@

# Both come from one build of the crates.
target/release/oxidask: $(RUST_SOURCES) python/oxidask/_graph_helper.py python/oxidask/_plugin_host.py
	cargo build --release --locked --package oxidask-cli
	@touch $@

$(BIN)/oxidask: $(STAMPS)/environment $(RUST_SOURCES) $(PYTHON_SOURCES) target/release/oxidask
	$(BIN)/maturin build --quiet --release --locked --interpreter $(BIN)/python --out target/wheels
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps \
		"$$(ls -t target/wheels/oxidask-*.whl | head -n 1)"
	@touch $@

demo: build ## Analyse a year of flights on our scheduler and on stock's.
	$(BIN)/python examples/demo.py

test: build lint test-rust test-sim test-python conformance ## Every test; what CI runs.

lint: $(STAMPS)/environment $(STAMPS)/cargo-deny ## Formatting, lints, types, licences.
	cargo fmt --all --check
	cargo clippy --quiet --locked --workspace --all-targets -- --deny warnings
	cargo fetch --quiet --locked
	cargo deny --offline --log-level error check bans licenses sources
	$(BIN)/ruff format --check --quiet python tests bench examples
	$(BIN)/ruff check --quiet python tests bench examples
	$(BIN)/mypy --no-error-summary

$(STAMPS)/cargo-deny: | $(STAMPS)
	command -v cargo-deny > /dev/null || cargo install --quiet --locked cargo-deny
	@touch $@

$(STAMPS)/cargo-nextest: | $(STAMPS)
	command -v cargo-nextest > /dev/null || cargo install --quiet --locked cargo-nextest
	@touch $@

# Property tests try the same cases every time, so that a change is judged by
# itself; `make soak` looks for new ones.
# The extension links against the interpreter that loads it, so it has no test
# binary of its own; Python tests it.
test-rust: $(STAMPS)/cargo-nextest ## Unit, transcript and property tests of the crates.
	PROPTEST_RNG_SEED=20260820 cargo nextest run --locked --workspace --exclude oxidask-python

# One seed after the other, from the same one every time, as property tests. A failure
# shows the seed and the least of its plan that still fails.
test-sim: target/release/oxidask ## Simulated clusters, for less than a minute.
	cargo run --quiet --release --locked --package oxidask-sim -- --seconds $(SIM_SECONDS) --first $(SIM_FIRST)

test-python: build ## The package, the graph helper, dask's order tests, wire and worker against stock.
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) tests/python
	$(BIN)/python -m pytest --quiet tests/order
	$(BIN)/python -m pytest --quiet tests/wire
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) tests/worker

# A quarter each of the other mixes, always the same; `make conformance-all` has all.
conformance: build ## The same black-box tests on ours, and a quarter of them on each mix with stock's.
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) --engine oxidask-both tests/conformance
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) --engine stock --quarter 0 tests/conformance
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) --engine oxidask --quarter 1 tests/conformance
	$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) --engine oxidask-worker --quarter 2 tests/conformance

conformance-all: build ## The same whole in all four mixes of stock's and our schedulers and workers.
	for engine in stock oxidask oxidask-worker oxidask-both; do \
		echo "== $$engine"; \
		$(BIN)/python -m pytest --quiet --numprocesses $(PYTEST_WORKERS) --engine $$engine tests/conformance \
			|| failed="$$failed $$engine"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

bench: build ## Short benchmarks against stock, in one run.
	$(BIN)/python bench/bench.py run quick
	cargo bench --quiet --package oxidask-scheduler

# With fresh seeds. Everything runs, so that no property test is missed by its name.
soak: $(STAMPS)/cargo-nextest ## Property tests of the cores, a hundred times longer than in CI, and simulated clusters.
	PROPTEST_CASES=25600 cargo nextest run --release --locked --package oxidask-wire --package oxidask-scheduler
	cargo run --quiet --release --locked --package oxidask-sim -- --seconds $(SOAK_SECONDS)
	cargo run --quiet --release --locked --package oxidask-sim -- --seed 1 --machines 10000

# The short form of the same is part of `make test`.
races: build ## Cancelled and resubmitted tasks, workers that die and connections that break, 10,000 rounds.
	$(BIN)/python -m pytest --quiet tests/worker/test_races.py --rounds 10000

fmt: $(STAMPS)/environment ## Format everything.
	cargo fmt --all
	$(BIN)/ruff format --quiet python tests bench examples
	$(BIN)/ruff check --quiet --fix python tests bench examples

clean: ## Remove what was built.
	rm -rf target $(VENV)
