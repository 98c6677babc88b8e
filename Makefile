# Everything from a bare machine (Debian or Ubuntu with Python 3.11, git and make).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help env demo reproduce workflow slurm servers check test test-all cluster cluster-stop lint docs demo-docs lock \
  clean distclean

PYTHON ?= python3.11
VENV := .venv
STAMP := $(VENV)/installed
EXECUTOR := workflow/plugins/snakemake-executor-plugin-submitit
INSTALL_LOG := $(VENV)/install.log
PIP = $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off
RESULTS := $(or $(SMT_RESULTS),results)/demo
WORKFLOW := $(RESULTS)/workflow.html
CLUSTER ?= .cluster
# The second trains from nothing, the last two on the first one's backbone.
FIRST_LOOK := imagenet1k_smt_small ablation_heads_1 coco_retinanet_smt_small ade20k_upernet_smt_small sizes
# Tests wait for servers much of the time: more workers than the two cores that they are made for.
WORKERS := -n 5 --dist loadgroup --no-fold-skipped $(ORDER)
# Whatever make runs finds this environment's commands first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Images of containers set it: hundreds of processes would each compile the same modules again.
unexport PYTHONDONTWRITEBYTECODE

help:  ## this list
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

env: $(STAMP)  ## the environment in .venv, every version as requirements.lock pins it

$(STAMP): requirements.lock pyproject.toml $(wildcard $(EXECUTOR)/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is not Python 3.11. Install it, as with: sudo apt-get install" \
	    "python3.11 python3.11-venv; or name it: make env PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) cannot make environments." \
	    "Install: sudo apt-get install python3.11-venv" >&2; exit 2; }
	@echo "make: installing $$(grep -c == requirements.lock) packages into $(VENV)/" \
	  "(several GB, a few minutes the first time); log: $(INSTALL_LOG)"
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@{ $(PIP) -r requirements.lock && $(PIP) --no-build-isolation --no-deps -e . -e $(EXECUTOR); } \
	  > $(INSTALL_LOG) 2>&1 || { \
	  grep -v "^WARNING: Location" $(INSTALL_LOG) | tail -n 5 >&2; \
	  echo "make: not installed; all that pip said: $(INSTALL_LOG)" >&2; exit 2; }
	@touch $(STAMP)
	@echo "make: environment is in $(VENV)/; for your shell: source $(VENV)/bin/activate"

demo: env  ## a first look, in two minutes: four runs at demo scale, in the tables and the report
	@echo "make: one classifier, one ablation, one detector, one segmenter at demo scale"
	@snakemake --profile local $(FIRST_LOOK) --logger runs
	@for command in sync tables figures report; do smt $$command --scale demo > /dev/null; done
	$(call show_results,make reproduce  (all experiments; these are kept))

reproduce: env  ## every variant and ablation at demo scale, then tables, figures and a report
	@echo "make: every experiment at demo scale, on this machine; what is done already is kept"
	@snakemake --profile local all --logger runs
	$(call show_results,smt ui  (the classifiers and their curves side by side))

# What was made, where it is, and in $(1) what to do next.
define show_results
	@echo "make: report   $(RESULTS)/report.html  (one file: open it in a browser)"
	@echo "make: tables   $(RESULTS)/tables/index.html  (Markdown, CSV and LaTeX beside it)"
	@echo "make: figures  $(RESULTS)/figures/"
	@echo "make: next     source $(VENV)/bin/activate, then $(1)"
endef

workflow: env $(WORKFLOW)  ## one HTML file on the jobs of the demo: DAG, run times, outputs

$(WORKFLOW): $(wildcard $(RESULTS)/tables/*.html $(RESULTS)/figures/* workflow/report/*)
	@snakemake --profile local --report $@ all
	@echo "make: workflow $@"

# Debian's packages that $(1) prints, if any; $(2) is what they are for.
define install
	@packages=$$(python -m $(1)); \
	if [ -z "$$packages" ]; then exit 0; fi; \
	as_root=; if [ "$$(id -u)" -ne 0 ]; then as_root="sudo -n"; fi; \
	apt="$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q"; \
	echo "make: $(2) not installed, installing Debian's" $$packages; \
	if ! $$as_root true 2>/dev/null || ! command -v apt-get >/dev/null; then \
	  why="that takes Debian, and root or sudo without a password"; \
	elif ! { $$apt update && $$apt -y --no-install-recommends install $$packages; }; then \
	  why="see apt-get above"; \
	else exit 0; fi; \
	echo "make: $(2) not installed and cannot be ($$why)." \
	  "Install: sudo apt-get install" $$packages >&2; \
	exit 2
endef

slurm: env  ## SLURM from Debian's packages, where it is missing
	$(call install,testbed.slurm missing,SLURM is)

servers: env  ## whatever tests start: SLURM, PostgreSQL, a browser, LaTeX
	$(call install,tests.helpers.debian,programs that tests start are)

check: lint  ## in three minutes, for every commit: style, types, unit tests; no servers
	@pytest $(WORKERS) -m "not slow" tests/unit $(wildcard $(EXECUTOR)/tests/unit)

test: env  ## the tests that continuous integration runs, with real servers of their own
	@$(MAKE) --no-print-directory servers || \
	  echo "make: tests that need them will be reported as not run, by name" >&2
	@pytest $(WORKERS) -m "not slow"

test-all: env  ## these and the long ones
	@$(MAKE) --no-print-directory servers
	@pytest $(WORKERS)

cluster: slurm  ## a SLURM of two nodes on this machine, to play with: for root, of several hosts
	@python -m testbed.slurm --folder $(CLUSTER) $(addprefix --share ,$(SMT_DATA) $(SMT_RESULTS)) start

cluster-stop: env  ## end it
	@python -m testbed.slurm --folder $(CLUSTER) stop

lint: env  ## style, types, layers, workflow, links of the documents
	@failed=; \
	for check in "ruff check" "ruff format --check" mypy "mypy --config-file tests/mypy.ini" \
	  lint-imports "snakefmt --check Snakefile workflow" "snakemake --lint" "mkdocs build --strict"; do \
	  echo "make: $$check"; $$check || failed="$$failed, $$check"; \
	done; \
	if [ -n "$$failed" ]; then echo "make: not clean:$${failed#,}" >&2; exit 1; fi
	@echo "make: lint is clean"

docs: env  ## the documents as a site, in site/; a broken link fails
	@mkdocs build --strict
	@echo "make: the documents are in site/index.html"

demo-docs: env  ## docs/dag.svg, docs/report.png, and the demo's tables in docs/demo-results.md
	@command -v dot >/dev/null && command -v chromium >/dev/null || { \
	  echo "make: dot plots the DAG, chromium the report." \
	    "Install: sudo apt-get install graphviz chromium" >&2; exit 2; }
	@snakemake --quiet all --rulegraph dot all | tred | dot -Grankdir=LR -Tsvg > docs/dag.svg
	@python docs/demo_results.py docs/demo-results.md $(RESULTS)/tables
	@chromium --headless --disable-gpu --hide-scrollbars $(if $(filter 0,$(shell id -u)),--no-sandbox) \
	  --window-size=1200,1100 --screenshot=docs/report.png file://$(abspath $(RESULTS)/report.html) 2>/dev/null
	@echo "make: docs/dag.svg, docs/report.png and docs/demo-results.md are up to date"

lock: env  ## requirements.lock from what is in .venv
	@{ echo "# Every package of the environment, pinned. Made by: make lock"; \
	  pip freeze --all --exclude-editable --disable-pip-version-check | grep -v '^pip==' \
	  | sed -E '/^(nvidia|cuda|triton)/ s/$$/ ; platform_system == "Linux" and platform_machine == "x86_64"/'; \
	} > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(STAMP)
	@echo "make: requirements.lock pins $$(grep -c == requirements.lock) packages"

clean:  ## remove caches; results/, data/ and .venv stay
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache site *.egg-info
	@find smt tests workflow benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "make: caches are gone; results/ and data/ are yours to remove"

distclean: clean  ## remove .venv as well; results/ and data/ still stay
	@rm -rf $(VENV)
	@echo "make: $(VENV)/ is gone; make env installs it again"
