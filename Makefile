# Every target but `help` and `clean` makes .venv itself when it is missing. `make` alone lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
PEERS_INSTALLED := .venv-peers/.installed

# Variables of `make serve`.
MODEL_NAME := eta
MODEL_DIR := build/serving/eta
PORT := 8500
# Variable of `make test`.
JOBS := 2
# More flags for `make pipeline`, and rates that MovieLens-1M's validation part chose.
PIPELINE_ARGS :=
MOVIELENS_RATES := --epochs 3 --decay --embedding_learning_rate .5 --dense_learning_rate .005
# Variables of `make fuzz` and `make soak`.
REQUESTS := 20000
MINUTES := 10
# Variable of `make notebooks`.
ROWS := 20000
# More flags for `make bench-peers`.
PEERS_ARGS :=

.PHONY: help demo pipeline test test-py313 check serve conformance fuzz soak notebooks bench bench-peers clean

help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(INSTALLED) ## Train ETA on MovieLens-1M, compare, export, serve and rank films: one command, from start to end
	$(PYTHON) demo.py

pipeline: $(INSTALLED) ## Run the TFX pipeline on MovieLens-1M, from raw logs to a version in MODEL_DIR; `make serve` serves it
	$(PYTHON) -m tfx_pipeline.run --layout movielens --serving_dir $(MODEL_DIR) $(MOVIELENS_RATES) $(PIPELINE_ARGS)

test: $(INSTALLED) ## Run all tests, JOBS files at a time
	$(PYTHON) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-py313: ## Run check and test on Python 3.13 and TFX 1.21, in a Debian 13 that debootstrap makes under build (as root)
	@.ci/test-py313

check: $(INSTALLED) ## Lint, check the formatting and the types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

serve: $(INSTALLED) ## Serve MODEL_DIR as MODEL_NAME on PORT over gRPC, by TensorFlow Serving where it is installed
	@test -d $(MODEL_DIR) || { echo "No model in $(MODEL_DIR): run 'make demo' first, or pass MODEL_DIR=..." >&2; exit 1; }
	@if command -v tensorflow_model_server >/dev/null; then \
	    exec tensorflow_model_server --port=$(PORT) --model_name=$(MODEL_NAME) --model_base_path=$(abspath $(MODEL_DIR)) \
	        --grpc_max_threads=64 --xla_cpu_compilation_enabled; \
	else \
	    exec $(PYTHON) -m serving.server --port $(PORT) --model_name $(MODEL_NAME) --model_base_path $(MODEL_DIR); \
	fi

conformance: $(INSTALLED) ## Check every answer of the embedded server, or of the server at TARGET=host:port
	$(PYTHON) -m serving.tools.conformance $(if $(TARGET),--target $(TARGET))

fuzz: $(INSTALLED) ## Send REQUESTS broken requests to the embedded server, good ones between them
	$(PYTHON) -m serving.tools.fuzz --requests $(REQUESTS)

soak: $(INSTALLED) ## Ask the embedded server for MINUTES while versions are pushed, broken, rolled back and removed
	$(PYTHON) -m serving.tools.soak --minutes $(MINUTES)

notebooks: $(INSTALLED) ## Execute the notebooks from start to end on ROWS impressions, into build/notebooks
	KERAS_ETA_ROWS=$(ROWS) KERAS_ETA_BUILD=$(abspath build) $(PYTHON) -m jupyter nbconvert --to notebook --execute --output-dir build/notebooks notebooks/*.ipynb

bench: $(INSTALLED) ## Time training steps, requests and retrieval against full target attention, and the embedded server
	$(PYTHON) -m benchmarks.training
	$(PYTHON) -m benchmarks.pipeline
	$(PYTHON) -m benchmarks.memory
	$(PYTHON) -m benchmarks.retrieval
	$(PYTHON) -m benchmarks.serving overhead

bench-peers: $(INSTALLED) $(PEERS_INSTALLED) ## Time training steps against FuxiCTR and DeepCTR, and check the two ETAs' retrieval; PEERS_ARGS adds flags
	$(PYTHON) -m benchmarks.peers $(PEERS_ARGS)

clean: ## Remove everything that the other targets made, except .venv and .venv-peers
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(INSTALLED): requirements.txt requirements-py313.txt pyproject.toml
	@.ci/venv

$(PEERS_INSTALLED): benchmarks/peers.txt | $(INSTALLED)
	@.ci/venv-peers
