# The commands of the project; `make help` lists them. Each may be repeated, and does only what is left to do.
.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-python bench reproduce asan tsan fuzz format format-check tidy clean

jobs ?= $(shell nproc)
release := build/release
fasa := $(release)/bin/fasa
model := build/deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
profile := $(model:.gguf=.fasa.json)
sources := $(shell git ls-files '*.cc' '*.h' '*.c' '*.cu' '*.cuh' 2>/dev/null)

# What the demo calibrates on is not what it asks about.
docs := build/deps/llama.cpp
calibration_texts := $(docs)/docs/autoparser.md $(docs)/docs/speculative.md $(docs)/CONTRIBUTING.md $(docs)/docs/multi-gpu.md
document ?= /usr/share/common-licenses/GPL-3
question ?= What does this license say about patents?

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## bring Debian packages, llama.cpp and the demo's model (offline once done)
	@scripts/setup

build: setup ## build the program, the library and the tests: build/release
	@[ -f $(release)/build.ninja ] || cmake --preset release
	@ninja -C $(release) -j $(jobs)

demo: $(profile) ## answer a question about a long document with llama.cpp's attention and with FASA, and compare
	@echo "demo: $(document): $(question)"
	$(fasa) run --file $(document) -p '$(question)' --compare -n 128

$(profile): | build
	$(fasa) calibrate -m $(model) --text $(calibration_texts) -o $@.part
	@mv $@.part $@

test: build ## build and run all tests
	ctest --test-dir $(release) -j $(jobs) --output-on-failure

bench: $(profile) ## measure tokens per second against context depth, and each operation
	$(fasa) bench --depth 0,4096,8000 --policy full,fasa --budget 256
	@for program in $(release)/bin/*_bench; do echo "== $$program"; $$program || exit 1; done

reproduce: build ## make every number of docs/quality.md and docs/reproduction.md (hours; goes on where it stopped)
	@scripts/setup --gemma
	@scripts/reproduce

test-python: ## build the wheel of the Python package and test it in two versions of torch
	@scripts/test_python

asan: setup ## build with AddressSanitizer and UBSan, and run the tests: build/asan
	@scripts/test_sanitized asan

tsan: setup ## build with ThreadSanitizer, and run the tests of the library: build/tsan
	@scripts/test_sanitized tsan

fuzz: ## run the fuzz targets, 20 seconds each (needs clang)
	@scripts/setup --developer
	@scripts/fuzz

format: ## format all sources with clang-format
	@clang-format -i $(sources)

format-check: ## fail where clang-format would change something
	@clang-format --dry-run -Werror $(sources)

tidy: setup ## run clang-tidy on all sources, or on those that differ from $BASE
	@scripts/tidy

clean: ## remove what was built, but not what was downloaded
	@find build -mindepth 1 -maxdepth 1 ! -name deps -exec rm -rf {} + 2>/dev/null || true
