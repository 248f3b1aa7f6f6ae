# The front door. `make help` lists what there is; rarer commands are in book/reproduce.md.
SUITE ?= lab
CORES ?= 2
RUNG ?=
MODEL ?= smollm2-135m
PROFILE ?=
TESTS ?=
SEED ?= 0
PYTHON ?= python3
# The default suites never ask the hub; `make sweep SUITE=paper HF_HUB_OFFLINE=0` does.
export HF_HUB_OFFLINE ?= 1
# Processes that the workflow does not start itself (tests, training) may use all cores.
export OMP_NUM_THREADS ?= $(CORES)

ifneq ($(shell echo '$(CORES)' | grep -cxE '[1-9][0-9]*'),1)
$(error CORES is '$(CORES)', expected a positive whole number: make book CORES=2)
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG := config/$(SUITE).yaml
PAGE = results/$(SUITE)/book/_build/html/index.html
# Ablations, the longest runs, and the scorings that they need go first, or one is left for the end and for one core.
# Snakemake looks at all inputs anew after each such timespan, once for every job that has ended: seconds, not one.
# Without Snakemake's own lock, which outlives a kill: workflow/lock.py has one that does not.
# The stand-in suite's hub runs as long as the command.
STANDIN = $(if $(filter standin,$(SUITE)),$(BIN)/python -m tests.support.standin results/standin/hub)
# Notebooks of a sweep share one process that has imported what they need.
WARM = env PYTHONHASHSEED=0 $(BIN)/python -m workflow.warm
SNAKEMAKE = $(BIN)/snakemake --quiet host rules $(if $(PROFILE),--workflow-profile $(PROFILE),--cores $(CORES) --resources gpu=1) --configfile $(CONFIG) --prioritize ablation --keep-going --rerun-incomplete --nolock --scheduler greedy --max-jobs-per-timespan 100/10s

# The book of what has finished: of the committed tables first, minutes before the rest; and where a run fails.
UNFINISHED = $(BIN)/python -m workflow.book --unfinished $(CONFIG)

.DEFAULT_GOAL := help
.PHONY: help env book sweep plan suite measure spot-check verify test check browser-test lab bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.* ## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: SUITE=$(SUITE) CORES=$(CORES) PYTHON=$(PYTHON) HF_HUB_OFFLINE=$(HF_HUB_OFFLINE)"

book: suite ## run the suite (SUITE=lab) as far as needed and render the book, of what has finished where a run fails
	@test -e $(PAGE) || ! grep -q '^include:' $(CONFIG) || { $(WARM) $(SNAKEMAKE) committed && $(UNFINISHED); } || true
	@$(STANDIN) $(WARM) $(SNAKEMAKE) || { $(UNFINISHED); exit 1; }
	@echo "Open $(PAGE)"

sweep: suite ## run the notebooks of the suite as far as needed, without the book
	@$(STANDIN) $(WARM) $(SNAKEMAKE) sweep

plan: suite ## what `make book` would run, how many forward passes and hours that is (GPU: TFLOPS=50)
	@$(STANDIN) $(SNAKEMAKE) -n
	@TFLOPS=$(TFLOPS) $(BIN)/python -m benchmarks.cost $(CONFIG)

measure: env ## measure a packaged model (MODEL=smollm2-135m: hours), or again and compare with its tables in pretrained/
	@$(BIN)/python -m workflow.measure config/pretrained.yaml $(MODEL)

spot-check: env ## measure a sample of a packaged model (MODEL=smollm2-135m: minutes), compare with pretrained/spot and brute force
	@$(BIN)/python -m workflow.measure config/spot.yaml $(MODEL)
	MODEL=$(MODEL) $(BIN)/python -m pytest -m weights tests/test_real_models.py

verify: suite ## whether the suite's results and the code agree; lists what is stale, foreign or unreadable
	@$(BIN)/python -m workflow.verify $(CONFIG)

test: env ## the tests, a module at a time on each core; those with TESTS="-m end_to_end" run beside them in CI
	OMP_NUM_THREADS=1 $(BIN)/python -m workflow.warm --others-only $(BIN)/python -m pytest -n $(CORES) --dist loadscope --no-loadscope-reorder $(TESTS)

check: env ## lint, and templates without outputs
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --noconftest tests/test_templates.py -k clean

browser-test: env ## open every page of the built book (SUITE=lab) in headless Chromium; SHOTS=folder keeps screenshots
	BOOK=results/$(SUITE)/book/_build/html SHOTS=$(SHOTS) $(BIN)/python -m pytest -n $(CORES) -m browser tests/test_browser.py tests/test_words.py

lab: env ## train a lab model (RUNG=lab-7k SEED=0), a committed one again to compare; without RUNG what is missing
	$(BIN)/python -m $(if $(RUNG),lab.retrain $(RUNG) --seed $(SEED),lab.train)

bench: env ## what FV scores, a grid of ablations, training steps and a cold book (SUITE=lab) cost; tables in results/bench
	$(BIN)/python -m benchmarks.fv_scores
	$(BIN)/python -m benchmarks.ablation_grid
	$(BIN)/python -m benchmarks.training
	CORES=$(CORES) $(BIN)/python -m benchmarks.book $(SUITE)

clean: ## remove all results (not the environment, not the lab models)
	rm -rf results .snakemake

env: $(STAMP) ## make the environment in .venv, anew where requirements.lock has changed

# One line for a suite that is missing or wrong, before anything runs.
suite: env
	@$(BIN)/python -m workflow.suite $(CONFIG)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, but 3.11 or newer is needed: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
