"""A training step of Axolotl's diffusion plugin, for `train_step.py`: one step for each line on standard input.

    python train_step_axolotl.py AXOLOTL MODEL DTYPE ROWS SEQ_LEN THREADS [--compile] [--checkpointing]

AXOLOTL is a folder that holds the package `axolotl` alone. Its trainer is the real one: `DiffusionTrainer.compute_loss`, with the
attention mask, the shift and the loss of the plugin. What the package wants beside it is replaced, because none of it is computed in a
step: the base class `AxolotlTrainer` (a Hugging Face `Trainer` whose loop this file writes out: loss, backward, clip, AdamW), `get_logger`,
`DictDefault` and the callback that generates samples.
"""
import json
import logging
import pathlib
import resource
import sys
import time
import types

folder, model_folder, dtype, rows, seq_len, threads = sys.argv[1:7]
rows, seq_len, threads = int(rows), int(seq_len), int(threads)


def replaced(name, **contents):
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


class AxolotlTrainer:
    """The base class, reduced to what `compute_loss` asks of it."""

    processing_class = None

    def __init__(self):
        self.metrics = {}

    def store_metrics(self, metrics, train_eval="train"):
        self.metrics = metrics


class Settings(dict):
    __getattr__ = dict.get


diffusion = "axolotl.integrations.diffusion"
for name in ["axolotl", "axolotl.integrations", diffusion, "axolotl.core", "axolotl.core.trainers", "axolotl.utils"]:
    replaced(name, __path__=[str(pathlib.Path(folder, *name.split(".")))])
replaced("axolotl.core.trainers.base", AxolotlTrainer=AxolotlTrainer)
replaced("axolotl.utils.logging", get_logger=logging.getLogger)
replaced("axolotl.utils.dict", DictDefault=Settings)
replaced(diffusion + ".callbacks", DiffusionGenerationCallback=object)
sys.path.insert(0, folder)

import torch  # noqa: E402
from axolotl.integrations.diffusion.trainer import DiffusionTrainer  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(threads)
torch.manual_seed(1)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="sdpa")
model.train()
if "--checkpointing" in sys.argv:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
trainer = DiffusionTrainer()
trainer._special_token_ids = set()
vocab_size = model.config.vocab_size
trainer.axolotl_cfg = Settings(
    diffusion=Settings(mask_token_id=vocab_size - 1, eps=1e-3, importance_weighting=True), sample_packing=False
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
network = torch.compile(model) if "--compile" in sys.argv else model
ids = torch.tensor([[(row * 7919 + i * 104_729) % (vocab_size - 1) for i in range(seq_len)] for row in range(rows)])
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

print("ready", flush=True)
for _ in sys.stdin:
    started = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = trainer.compute_loss(network, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    elapsed_s = time.perf_counter() - started
    masked, _ = trainer.metrics["num_masked_tokens"]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # it counts KiB
    print(json.dumps({"elapsed_s": elapsed_s, "masked": masked, "peak_mb": peak_mb, "loss": loss.item()}), flush=True)
