# Tickertape. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
FAST := -m "not slow"
.DEFAULT_GOAL := help
.PHONY: help setup demo test fast check format up down bench faults docs clean

help: ## list what can be done
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## make .venv, install the locked packages, resolve Apache Kafka
	@$(PYTHON) deploy/setup.py

demo: setup ## the main job, end to end on the embedded default (DEMO=quick, DATA=path)
	@$(BIN)/python -m examples.demo

test: setup ## every test, with the coverage gate
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

fast: setup ## the tests' fast part
	$(BIN)/pytest -q $(FAST)

check: setup ## the gate before every commit: format, lint, types, layers, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q $(FAST)

format: ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: setup ## start the broker and the store, apply the topics
	@$(BIN)/tape up

down: ## stop what `make up` started
	@$(BIN)/tape down

bench: setup ## the benchmarks (a quarter of an hour; peers are installed apart)
	$(BIN)/python benchmarks/queue.py

faults: setup ## the fault campaign (MINUTES=10; 30 for the nightly length; ROWS=1,5,13)
	$(BIN)/python -m tests.campaign --minutes $(or $(MINUTES),10) $(if $(ROWS),--rows $(ROWS))

docs: setup ## write the generated documents anew
	$(BIN)/tape schemas export
	$(BIN)/python deploy/tree.py

clean: ## remove what was made here; the cache of things fetched once stays
	-@$(BIN)/tape down 2>/dev/null
	rm -rf .venv .tape .bench build *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
