# The words that people and CI type. Every target first prepares libtorch where it is missing.
.DEFAULT_GOAL := help
.PHONY: help libtorch demo test check bench

help: libtorch ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

libtorch: ## Download libtorch once per user and link it into this clone
	@python3 scripts/libtorch.py

demo: libtorch ## Train a small model on real text and generate with it (DATA=FOLDER names other text)
	@scripts/demo

test: libtorch ## Run every test, doc test and example, and print how many passed
	@python3 scripts/test.py

check: libtorch ## Check formatting, lints, docs, dependencies and spelling, with warnings denied
	@scripts/check

bench: libtorch ## Measure a training step and a denoising pass on this machine
	@cargo run --quiet --example bench_step
