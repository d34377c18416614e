# `make run` and `make test` need nothing before them: each installs what it needs, configures, builds and runs.
# Site settings are in Makefile.inc.
include Makefile.inc

PTRT := $(BUILD_DIR)/ptrt
DEMO := examples/demo
RANKS ?= 8
# Ranks of this machine may outnumber its cores and be started by root in a container.
MPI_ENV := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# CMake reads Makefile.inc by itself; what make was given on its command line must reach it too.
export CXX_COMPILER BUILD_TYPE MPI_HOME HDF5_HOME CUDA_HOME NCCL_HOME CUDA_ARCHITECTURES

.DEFAULT_GOAL := help
.PHONY: help run test test-arm test-slurm test-vllm program build install deb deps program-deps grade asan ubsan tsan format format-check tidy clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 16

run: program ## Eight MPI ranks, one track each, answer a dozen prompts with the demo model
	@scripts/run_demo.sh $(PTRT) $(DEMO) $(RANKS) $(MPIRUN) $(MPIRUN_FLAGS)

test: build ## Build and run all tests
	@cmake --build $(BUILD_DIR) --parallel $(JOBS)
	$(MPI_ENV) ctest --test-dir $(BUILD_DIR) --output-on-failure -j $(JOBS)

test-slurm: build ## Run the batch scripts of scripts/slurm on a real Slurm of two emulated nodes (root)
	@tests/slurm/install.sh
	PTRT_TEST_SLURM=1 ctest --test-dir $(BUILD_DIR) -L slurm --output-on-failure

test-arm: build ## Compile for 64-bit Arm in a throw-away Debian and run the tests emulated (root)
	PTRT_TEST_ARM=1 ctest --test-dir $(BUILD_DIR) -L arm --output-on-failure

test-vllm: build ## Run the tests of the vLLM plug-in (makes their environment: 3 GB of downloads, 5 GB on disk)
	@integrations/vllm/make_environment.sh $(or $(PTRT_VLLM_VENV),$(BUILD_DIR)/vllm-venv)
	$(MPI_ENV) ctest --test-dir $(BUILD_DIR) -L vllm --output-on-failure

# $(call configure,OPTIONS): quiet unless it fails.
configure = cmake -S . -B $(BUILD_DIR) -DCMAKE_BUILD_TYPE=$(BUILD_TYPE) $(1) > $(BUILD_DIR)-configure.log 2>&1 || { cat $(BUILD_DIR)-configure.log; exit 1; }

# A first configuration looks for what the program needs and no further; `make build` and `make test` look for the rest.
# Where they did, the target `product` has the plug-in too: a plug-in of older sources would be refused, or run old kernels.
program: program-deps ## Build the program alone: build/ptrt
	@$(call configure,$(if $(wildcard $(BUILD_DIR)/CMakeCache.txt),,-DPTRT_PROGRAM_ONLY=ON))
	@cmake --build $(BUILD_DIR) --parallel $(JOBS) --target product

build: deps ## Build the program and, where nvcc is found, its CUDA plug-in
	@$(call configure,-DPTRT_PROGRAM_ONLY=OFF)
	@cmake --build $(BUILD_DIR) --parallel $(JOBS) --target product

install: build ## Install both, documents and demo below PREFIX (and DESTDIR)
	cmake --install $(BUILD_DIR) --prefix $(PREFIX)

deb: build ## Make Debian packages of them: build/*.deb
	cd $(BUILD_DIR) && cpack -G DEB

deps: ## Install the Debian packages that building and testing need (INSTALL_DEPS=0: check only)
	@INSTALL_DEPS=$(INSTALL_DEPS) scripts/install_deps.sh

program-deps:
	@INSTALL_DEPS=$(INSTALL_DEPS) scripts/install_deps.sh program

grade: program ## 500 held-out prompts through the demo model, graded
	$(MPI_ENV) $(MPIRUN) $(MPIRUN_FLAGS) -n $(RANKS) $(PTRT) generate $(DEMO)/demo.h5 $(DEMO)/heldout.jsonl -o $(BUILD_DIR)/heldout.results.jsonl
	python3 scripts/grade_demo.py $(BUILD_DIR)/heldout.results.jsonl --answers $(DEMO)/answers.jsonl --min 95

asan ubsan tsan: deps ## Build with a sanitizer and run the tests (tsan: of what has threads)
	cmake --preset $@
	cmake --build --preset $@ --parallel $(JOBS)
	$(MPI_ENV) ctest --preset $@ -j $(JOBS)

format: ## Apply clang-format
	scripts/format.sh

format-check: ## Fail when a file is not formatted
	scripts/format.sh --check

tidy: deps ## Run clang-tidy on what changed against BASE
	@$(call configure,-DPTRT_PROGRAM_ONLY=OFF)
	scripts/tidy.sh $(BUILD_DIR) $(BASE)

clean: ## Remove what was built
	rm -rf $(BUILD_DIR) $(BUILD_DIR)-configure.log build-asan build-ubsan build-tsan build-asan-ubsan build-sources
