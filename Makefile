# The words that people and CI type. Every target first prepares libtorch where it is missing.
.DEFAULT_GOAL := help
.PHONY: help libtorch demo test golden-table check bench bench-loss bench-data bench-data-memory interop-data interop

help: libtorch ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-17s %s\n", $$1, $$2}'

libtorch: ## Download libtorch once per user and link it into this clone
	@python3 scripts/libtorch.py

demo: libtorch ## Train a small model on real text and generate with it (DATA=FOLDER names other text)
	@scripts/demo

test: libtorch ## Run every test, doc test and example, and print how many passed
	@python3 scripts/test.py

golden-table: libtorch ## Compare the objectives with golden data and print the largest error of each file
	@scripts/golden_table.py

check: libtorch ## Check formatting, lints, docs, dependencies and spelling, with warnings denied
	@scripts/check

bench: libtorch bench-data bench-loss ## Measure a training step, a denoising pass, the loss and data preparation on this machine
	@cargo run --quiet --example bench_step

bench-loss: libtorch ## Measure time and memory of the chunked loss beside the plain one: 8192 positions, 151,936 tokens, 14 GiB
	@cargo run --quiet -p dlm-torch --example bench_loss

# TOKENIZER names a tokenizer's folder, FILES the texts as JSON Lines; without them, see benches/data_prepare.py.
bench-data: libtorch ## Measure data preparation beside the Python way (TOKENIZER=FOLDER FILES="A.jsonl B.jsonl")
	@python3 benches/data_prepare.py $(if $(TOKENIZER),--tokenizer $(TOKENIZER)) $(FILES)

bench-data-memory: libtorch ## Measure the memory of data preparation for 200 MB and for 2 GB of text
	@python3 benches/data_prepare.py --memory $(if $(TOKENIZER),--tokenizer $(TOKENIZER)) $(FILES)

interop-data: libtorch ## Compare token ids with those of Python's tokenizers (TOKENIZER=FOLDER FILES="A.jsonl B.jsonl")
	@python3 tests/interop/ids.py $(TOKENIZER) $(FILES)

interop: libtorch ## Compare models, adapters and data with transformers, peft and others, in Python
	@scripts/interop
