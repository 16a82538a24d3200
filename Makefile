# Each target does all the set-up that it needs; what is done is kept in one cache folder and takes no time again.
# `make help` says what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The cache folder is chosen once and handed to everything that is started here.
export HEADSCOPE_CACHE := $(or $(HEADSCOPE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headscope)
# For shells that have not read rustup's profile yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# `make setup CUDA=1` as well as `CUDA=1 make setup`.
ifdef CUDA
export CUDA
endif
export LIBTORCH LIBTORCH_USE_PYTORCH
ifeq ($(LIBTORCH),)
unexport LIBTORCH
endif
ifeq ($(LIBTORCH_USE_PYTORCH),)
unexport LIBTORCH_USE_PYTORCH
endif

PIECES := apt python target libtorch minilm smollm2 shim
SETUP := python3 .cargo/setup.py
VENV := .venv/bin
NAMES ?=
WRITE ?=

.PHONY: help setup $(PIECES) evcxr kernel test outside notebooks lab bench lint clean

help: ## this list
	@echo "headscope: takes trained transformers apart, head by head"
	@echo
	@sed -nE 's/^([a-z]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '  make %-12s %s\n' "$$name" "$$what"; done
	@echo
	@echo "  make setup CUDA=1              the same with libtorch for NVIDIA GPUs (CUDA=0 goes back)"
	@echo "  make notebooks NAMES=00-tour   only that one"
	@echo "  make notebooks WRITE=1         and update the committed notebooks"
	@echo
	@echo "The first time takes about half an hour on two cores, most of it compiling; nothing is asked."
	@echo "What is fetched and built is kept in $(HEADSCOPE_CACHE)"

setup: ## everything that cargo needs: Debian packages, Python environment, libtorch, MiniLM, SmolLM2, tch's shim
	@$(SETUP) $(PIECES)

$(PIECES):
	@$(SETUP) $@

evcxr: setup
	@$(SETUP) evcxr

kernel: evcxr ## the Jupyter kernel "Rust (headscope)", rebuilt if the library has changed
	@python3 notebooks/kernel/kernel.py install

test: setup ## tests, doctests, notebook 00-tour and the page on notebooks
	@echo "headscope: tests (first time ten minutes on two cores, then one)"
	@# One thread for each test, as many tests as cores: else their threads wait for each other.
	@export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; \
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --no-fail-fast && cargo test --doc; else cargo test --no-fail-fast; fi
	@$(MAKE) outside
	@$(MAKE) kernel
	@$(SETUP) keep
	@if [ -f notebooks/00-tour.ipynb ]; then $(VENV)/python notebooks/run.py --check 00-tour docs/rust-in-a-notebook.md; fi

outside: setup ## builds and runs examples/outside as a program outside the clone, over the clone's compiled dependencies
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	cp -r examples/outside/. Cargo.lock "$$folder"; \
	sed -i 's|path = "../.."|path = "$(CURDIR)"|' "$$folder/Cargo.toml"; \
	cd "$$folder"; CARGO_TARGET_DIR="$(CURDIR)/target" cargo run -q --config "$(CURDIR)/.cargo/local.toml"

notebooks: kernel ## executes every notebook, leaves pages and executed copies in notebooks/html
	@$(VENV)/python notebooks/run.py $(if $(filter-out 0,$(WRITE)),--write) $(NAMES)

lab: kernel ## opens JupyterLab
	@# Else it would not show the pictures of notebooks that were executed elsewhere.
	@$(VENV)/jupyter trust notebooks/*.ipynb >/dev/null
	@HEADSCOPE_ROOT="$(CURDIR)" $(VENV)/jupyter lab --notebook-dir=notebooks \
		--MultiKernelManager.default_kernel_name=headscope $(if $(filter 0,$(shell id -u)),--allow-root)

# The library as `--release` would build it, over the dependencies that are built already: they are optimised in every
# profile. A plain `cargo bench` works too, and first compiles all of them again.
OPTIMISED := --config profile.dev.opt-level=3 --config profile.dev.debug-assertions=false --config profile.dev.overflow-checks=false

bench: setup ## benchmarks of the library and of the kernel's latency
	@cargo bench --profile dev $(OPTIMISED)
	@$(MAKE) kernel
	@$(VENV)/python benches/kernel_latency.py --runs 3

lint: setup ## formatting, clippy and documentation, without a warning
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

clean: ## removes what was built in this clone (the cache folder stays)
	rm -rf notebooks/html
	cargo clean -p headscope -p headscope-kernel
