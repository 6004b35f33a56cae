PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SUITES := .test-suites
VLLM := .venv-vllm
LMMS := .venv-lmms
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup quickstart test test-all fuzz test-versions test-vllm test-lmms bench lint format docs clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Create .venv with pinned dependencies and the parts of the quickstart and examples

$(READY): pyproject.toml constraints.txt parts.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mm1_hf needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[data,data-extras,quickstart,quantize,serve,eval,dev]'
	$(BIN)/pip install --quiet --no-deps -r parts.txt
	@touch $@

quickstart: $(READY)  ## Assemble an MM1, teach it to answer questions about pictures, and write a report
	$(BIN)/mm1 quickstart

test: MARKED := -m "not slow"
test: $(READY) $(SUITES)/.ready  ## Run the tests but the slow ones, transformers' own common suites among them
	$(run-tests)

test-all: export RUN_SLOW := 1
test-all: export MM1_FUZZ_CASES := 20000
test-all: $(READY) $(SUITES)/.ready  ## Run every test, also what takes longer than continuous integration may
	$(run-tests)

fuzz: MM1_FUZZ_CASES ?= 100000
fuzz: $(READY)  ## Try 100,000 broken and hostile inputs of every kind; MM1_FUZZ_CASES=1000 for fewer
	MM1_FUZZ_CASES=$(MM1_FUZZ_CASES) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 tests/fuzz

define run-tests
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 $(MARKED) --ignore=tests/common
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$(SUITES)/transformers $(BIN)/python -m pytest -q -n 2 $(MARKED) tests/common
endef

$(SUITES)/.ready: $(READY) tests/common/fetch_suites.py
	$(BIN)/python tests/common/fetch_suites.py $(SUITES)
	@touch $@

test-versions: $(READY)  ## Run the package on every release of transformers that it supports, and save here, load there
	$(BIN)/python tests/versions/run.py $(ROWS)

test-vllm: $(READY) $(VLLM)/.ready  ## Serve saved models with vLLM, in an environment of its own, and compare with transformers
	rm -rf $(VLLM)/quickstart
	$(BIN)/mm1 quickstart --output $(VLLM)/quickstart --steps 12 --questions 40
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MM1_QUICKSTART=$(VLLM)/quickstart $(VLLM)/bin/python -m pytest -q -s tests/vllm

$(VLLM)/.ready: tests/vllm/requirements.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet torch==2.13.0
	$(VLLM)/bin/pip install --quiet --no-deps -r tests/vllm/requirements.txt -e .
	$(VLLM)/bin/python tests/vllm/name_vllm.py
	@touch $@

test-lmms: $(LMMS)/.ready  ## Evaluate with lmms-eval and lm-evaluation-harness, in an environment of their own, and compare scores
	rm -rf $(LMMS)/quickstart
	$(BIN)/mm1 quickstart --output $(LMMS)/quickstart --steps 12 --questions 40
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MM1_QUICKSTART=$(LMMS)/quickstart $(LMMS)/bin/python -m pytest -q -s tests/lmms_eval

# It sees the packages of .venv, so that both harnesses run on the very torch and transformers of the other tests.
$(LMMS)/.ready: $(READY) tests/lmms_eval/requirements.txt
	$(PYTHON) -m venv $(LMMS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		$$($(LMMS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	$(LMMS)/bin/pip install --quiet --no-deps -r tests/lmms_eval/requirements.txt -e .
	@touch $@

lint: $(READY)  ## Check style, transformers' structural rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/structural_rules.py
	$(BIN)/ty check

format: $(READY)  ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Measure speed and memory against rivals on this machine, which takes hours on a CPU, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks.suite --scale cpu --output benchmarks/results/suite-cpu.json
	$(BIN)/python -m benchmarks.page docs/benchmarks.md

docs: $(READY)  ## Write the generated pages of docs/
	$(BIN)/python -m mm1_hf.accounting.presets_page > docs/presets.md
	$(BIN)/python -m mm1_hf.evaluation.tasks_page docs/evaluation.md

clean:  ## Remove what make created
	rm -rf .venv .versions $(SUITES) $(VLLM) $(LMMS) quickstart-mm1
