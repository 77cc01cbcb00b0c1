# The words that people and CI type. Every target first prepares libtorch where it is missing.
.DEFAULT_GOAL := help
.PHONY: help libtorch demo test golden-table golden-models check bench bench-step bench-loss bench-load bench-data bench-data-memory interop-data interop

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

golden-models: libtorch ## Print the largest difference to the reference's logits for each golden model, layout and rope scaling
	@cargo test --quiet -p dlm-model --test golden_model --test golden_rope golden_logits -- --nocapture | grep 'largest error'

check: libtorch ## Check formatting, lints, docs, dependencies and spelling, with warnings denied
	@scripts/check

bench: libtorch bench-step bench-data bench-loss bench-load ## Measure a training step, a denoising pass, the loss, data preparation and loading on this machine
	@cargo run --quiet --example bench_step

bench-loss: libtorch ## Measure time and memory of the chunked loss beside the plain one: 8192 positions, 151,936 tokens, 14 GiB
	@cargo run --quiet -p dlm-torch --example bench_loss

# MODEL names a model folder, STEP_OPTIONS more of what benches/train_step.py takes (--checkpointing, --compile, --threads N, ...).
bench-step: libtorch ## Measure a training step beside Axolotl's diffusion plugin (MODEL=FOLDER STEP_OPTIONS="--checkpointing")
	@python3 benches/train_step.py $(if $(MODEL),--model $(MODEL)) $(STEP_OPTIONS)

# TOKENIZER names a tokenizer's folder, FILES the texts as JSON Lines; without them, see benches/data_prepare.py.
bench-data: libtorch ## Measure data preparation beside the Python way (TOKENIZER=FOLDER FILES="A.jsonl B.jsonl")
	@python3 benches/data_prepare.py $(if $(TOKENIZER),--tokenizer $(TOKENIZER)) $(FILES)

bench-load: libtorch ## Measure the time to the first logits of a model beside transformers (MODEL=FOLDER)
	@python3 benches/model_load.py $(if $(MODEL),--model $(MODEL))

bench-data-memory: libtorch ## Measure the memory of data preparation for 200 MB and for 2 GB of text
	@python3 benches/data_prepare.py --memory $(if $(TOKENIZER),--tokenizer $(TOKENIZER)) $(FILES)

interop-data: libtorch ## Compare token ids with those of Python's tokenizers (TOKENIZER=FOLDER FILES="A.jsonl B.jsonl")
	@python3 tests/interop/ids.py $(TOKENIZER) $(FILES)

interop: libtorch ## Compare models, adapters and data with transformers, peft and others, in Python
	@scripts/interop
