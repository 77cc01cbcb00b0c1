#!/usr/bin/env python3
"""Measure a whole training step (forward, loss, backward, clip, AdamW) beside that of Axolotl's diffusion plugin.

    python3 benches/train_step.py [--model FOLDER] [--steps N] [--threads N] [--rows N] [--seq-len N] [--compile]

Both train the same weights on rows of the same length with the same number of threads, in float32 and in bfloat16 with float32 master
weights (the plugin: autocast). Two processes live at a time, dlm's and the plugin's, and step in turn; the first two steps of each do
not count, medians of the others do. Memory is the largest that each process ever held (`ru_maxrss`). About half of the tokens are masked.

A model to measure with comes from `hf download HuggingFaceTB/SmolLM2-135M --local-dir models/smollm2`; without one, one of its shape
with random weights is made. The plugin is `axolotl==0.19.0` from PyPI without its dependencies (see `train_step_axolotl.py` for what
stands in their place), over transformers with its SDPA attention and torch's fused AdamW.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

CLONE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "scripts"))
import python_peer  # noqa: E402  (scripts/python_peer.py)

PLUGIN = "axolotl==0.19.0"
PEER = pathlib.Path(__file__).with_name("train_step_axolotl.py")
SHAPE = """
import sys, torch, transformers
config = transformers.LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
torch.manual_seed(1)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""


def plugin(python):
    """The folder with the package `axolotl` and nothing else."""
    folder = CLONE / "target" / PLUGIN.replace("==", "-")
    if not (folder / "axolotl").is_dir():
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", folder, PLUGIN], check=True)
    return folder


def program():
    """The example that steps for dlm."""
    if os.environ.get("DLM_BENCH_STEP"):
        return os.environ["DLM_BENCH_STEP"]
    subprocess.run(["cargo", "build", "--quiet", "--example", "bench_step"], cwd=CLONE, check=True)
    return CLONE / "target/debug/examples/bench_step"


class Stepper:
    """A process that makes one step for each line and tells about it."""

    def __init__(self, name, command):
        self.name, self.told = name, []
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
        if name.startswith("dlm"):
            environment["LD_LIBRARY_PATH"] = str(CLONE / ".libtorch" / "lib")
        command = [str(word) for word in command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended early")
        return line

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.told.append(json.loads(self.read()))

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        counted = self.told[2:]
        elapsed_s = statistics.median(told["elapsed_s"] for told in counted)
        masked = statistics.mean(told["masked"] for told in counted)
        return elapsed_s, self.told[-1]["peak_mb"], masked


def compare(steppers):
    for _ in range(2 + arguments.steps):
        for stepper in steppers:
            stepper.step()
    tokens = arguments.rows * arguments.seq_len
    results = [stepper.end() for stepper in steppers]
    base_s, base_mb, _ = results[-1]
    for stepper, (elapsed_s, peak_mb, masked) in zip(steppers, results):
        print(
            f"{stepper.name:36} {elapsed_s:7.3f} s {tokens / elapsed_s:7.0f} tokens/s {peak_mb:6.0f} MB"
            f"   speed x {base_s / elapsed_s:4.2f}   memory x {peak_mb / base_mb:4.2f}   ({masked:.0f} of {tokens} tokens masked)",
            flush=True,
        )


def main():
    python = python_peer.environment("torch", "transformers", "safetensors")
    ours, peer_folder = program(), plugin(python)
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model
        if model is None:
            model = pathlib.Path(scratch) / "model"
            subprocess.run([python, "-c", SHAPE, model], check=True)
        shape = [str(n) for n in (arguments.rows, arguments.seq_len, arguments.threads)]
        for dtype in arguments.dtypes:
            precision = {"float32": "float32", "bfloat16": "mixed"}[dtype]
            peer = [python, PEER, peer_folder, model, dtype, *shape]
            way = [ours, model, "--drive", *shape, precision]
            compare([Stepper(f"dlm, {precision}", way), Stepper(f"plugin, {dtype}", peer)])
            if arguments.checkpointing:
                steppers = [Stepper(f"dlm, {precision}, checkpointing", [*way, "--checkpointing"])]
                compare([*steppers, Stepper(f"plugin, {dtype}, no checkpointing", peer)])
            if arguments.compile:
                compare([Stepper(f"dlm, {precision}", way), Stepper(f"plugin, {dtype}, torch.compile", [*peer, "--compile"])])
        # No peer: the plugin has no such mode.
        if "bfloat16" in arguments.dtypes:
            compare([Stepper("dlm, bfloat16 weights and moments", [ours, model, "--drive", *shape, "bfloat16"])])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=pathlib.Path)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rows", type=int, default=4)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
parser.add_argument("--checkpointing", action="store_true", help="also with gradient checkpointing on dlm's side")
parser.add_argument("--compile", action="store_true", help="also beside the plugin under torch.compile, which compiles for minutes")

if __name__ == "__main__":
    arguments = parser.parse_args()
    main()
