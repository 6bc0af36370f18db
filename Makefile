# `make run` shows the demo model at work; `make test` passes the tests. Both install what is missing.

NODE ?= node
BIN := node_modules/.bin
# More arguments for vitest, for example VITEST_ARGS="test/unit/cli".
VITEST_ARGS ?=
# Which benchmark, with its options, for example BENCH="quality --json"; empty: the short ones.
BENCH ?=

# Whatever decides what tsc writes. Folders count too: deleting a file changes its folder's time.
# Not as prerequisites: some folders have the names of targets.
TS_FOLDERS := $(wildcard bench checkpoint cli common coordinator models native proto simulation test worker)
TS_CHANGED = find $(TS_FOLDERS) tsconfig.json package-lock.json \
	\( -name fixtures -o -name train \) -prune -o \
	\( -name '*.ts' -o -name '*.json' -o -type d \) -newer dist/.built -print

.PHONY: setup build cuda cuda-test cuda-bench run test test-long test-simulation lint format bench clean
.NOTPARALLEL:

setup:
	@sh deploy/setup.sh

build: setup
	@$(NODE) proto/generate.mjs
	@sh native/build.sh
	@if [ ! -e dist/.built ] || [ -n "$$($(TS_CHANGED))" ]; then $(COMPILE); fi

# The CUDA backend, for machines with an NVIDIA GPU (docs/cuda.md). Nothing else needs it.
cuda:
	@sh native/cuda/build.sh --report

# Needs a GPU; elsewhere it says so. The same checks run by emulation in `make test`.
cuda-test:
	@sh native/cuda/test.sh

cuda-bench:
	@sh native/cuda/bench.sh

# The stamp carries the time before the compiler read the sources, so no change in between is lost.
# Without it dist/ cannot be trusted, and neither can what tsc remembers of it.
define COMPILE
	echo "compiling TypeScript"; \
	[ -e dist/.built ] || rm -rf dist build/tsconfig.tsbuildinfo; \
	mkdir -p dist && touch dist/.building && $(BIN)/tsc -p tsconfig.json && mv dist/.building dist/.built
endef

run: build
	@$(NODE) dist/cli/demo.js

test: build lint
	@$(BIN)/vitest run $(VITEST_ARGS)

test-long: build
	@$(BIN)/vitest run --config vitest.long.config.ts $(VITEST_ARGS)

# So many seeds of the fault simulator (docs/simulation.md).
SEEDS ?= 10000

test-simulation: build
	@$(NODE) dist/simulation/chaos/main.js --seeds $(SEEDS)

lint: setup
	@npm run --silent lint

format: setup
	@npm run --silent format

bench: build
	@$(NODE) dist/bench/main.js $(BENCH)

clean:
	rm -rf dist build proto/generated
