#!/usr/bin/env python3
"""Measure `dlm data prepare` beside the Python way (`datasets` and `tokenizers`, two processes), on the same files.

    python3 benches/data_prepare.py [--tokenizer FOLDER] [--runs N] [FILE...]     rows per second and memory
    python3 benches/data_prepare.py --memory [--tokenizer FOLDER] [FILE...]       peak memory for 200 MB and for 2 GB of input
    python3 benches/data_prepare.py --kills N [--tokenizer FOLDER] [FILE...]      N times killed and begun again: the same bytes?

A FILE is JSON Lines with a column `text`, or with `instruction` and `output`. Without one, text is gathered from the cargo
registry as for the demo. A tokenizer to measure with comes from
`hf download HuggingFaceTB/SmolLM2-135M tokenizer.json tokenizer_config.json --local-dir models/smollm2`; without one, a small one
is trained on the first file. Both ways are run in turn, from the start of the process to the closed Parquet file, and the
median counts. The release build of `dlm` is made first, or is that which `DLM` names; Python's environment comes from PyPI.
"""
import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

CLONE = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CLONE / "scripts"))
import python_peer  # noqa: E402  (scripts/python_peer.py)

SEQUENCE_LEN = 2048
PEER = pathlib.Path(__file__).with_name("data_python_way.py")


def dlm():
    """The release build of `dlm`."""
    if os.environ.get("DLM"):
        return os.environ["DLM"]
    subprocess.run(["cargo", "build", "--quiet", "--release", "--bin", "dlm"], cwd=CLONE, check=True)
    return str(CLONE / "target/release/dlm")


def measure(command):
    """Seconds and peak memory in MB of a command, the largest of its processes."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed_s = time.monotonic() - started
        if status != 0:
            output.seek(0)
            sys.exit(f"failed: {command}\n" + output.read().decode(errors="replace")[-3000:])
    return elapsed_s, usage.ru_maxrss / 1000


def columns(file):
    with open(file, encoding="utf-8") as lines:
        return json.loads(next(lines)).keys()


def pipeline(file, tokenizer, folder, output=""):
    """The pipeline file that does with `file` what the Python way does."""
    quoted = json.dumps  # a TOML string, too
    steps = ["[[source]]", f"path = {quoted(str(file))}"]
    if "text" not in columns(file):
        steps += ["[[step]]", "select = [" + quoted("concat(instruction, chr(10), output) as text") + "]"]
    steps += ["[[step]]", f"tokenize = {{ tokenizer = {quoted(str(tokenizer))}, add_eos = true }}"]
    steps += ["[[step]]", f"pack = {{ sequence_len = {SEQUENCE_LEN} }}", output]
    path = folder / f"{file.stem}.toml"
    path.write_text("\n".join(steps) + "\n")
    return path


def speed(program, tokenizer, files, runs):
    peer = python_peer.environment("datasets", "tokenizers")
    print(f"{'file':24} {'rows':>8} {'dlm':>9} {'rows/s':>9} {'memory':>8}   {'Python':>9} {'rows/s':>9} {'memory':>8}   ratio")
    for file in files:
        with open(file, "rb") as lines:
            rows = sum(1 for _ in lines)
        ours, theirs = [], []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as scratch:
                scratch = pathlib.Path(scratch)
                plan = pipeline(file, tokenizer, scratch)
                ours.append(measure([program, "data", "prepare", plan, "--output", scratch / "out"]))
                theirs.append(measure([peer, PEER, tokenizer, file, scratch / "peer.parquet", SEQUENCE_LEN]))
        (our_s, our_mb), (their_s, their_mb) = (
            (statistics.median(s for s, _ in way), max(mb for _, mb in way)) for way in (ours, theirs)
        )
        print(
            f"{file.name:24} {rows:8} {our_s:7.2f} s {rows / our_s:9.0f} {our_mb:5.0f} MB   "
            f"{their_s:7.2f} s {rows / their_s:9.0f} {their_mb:5.0f} MB   {their_s / our_s:.1f}",
            flush=True,
        )


def enlarged(files, target, size):
    """Repeats the rows of `files`, each made distinct by a number, until there are `size` bytes."""
    rows = []
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                rows.append(row["text"] if "text" in row else f"{row['instruction']}\n{row['output']}")
    written, number = 0, 0
    with open(target, "w", encoding="utf-8") as output:
        while written < size:
            written += output.write(json.dumps({"text": f"{number} {rows[number % len(rows)]}"}, ensure_ascii=False) + "\n")
            number += 1


def memory(program, tokenizer, files):
    peaks = []
    for size in (200_000_000, 2_000_000_000):
        with tempfile.TemporaryDirectory(dir=CLONE / "target") as scratch:
            scratch = pathlib.Path(scratch)
            enlarged(files, scratch / "text.jsonl", size)
            plan = pipeline(scratch / "text.jsonl", tokenizer, scratch)
            elapsed_s, peak_mb = measure([program, "data", "prepare", plan, "--output", scratch / "out"])
            peaks.append(peak_mb)
            print(f"{size / 1e6:5.0f} MB of input: {peak_mb:5.0f} MB at most, {elapsed_s:.1f} s, {size / 1e6 / elapsed_s:.0f} MB/s", flush=True)
    print(f"ten times the input takes {100 * (peaks[1] / peaks[0] - 1):+.1f} % memory")


def digest(folder):
    """A hash over the names and bytes of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def kills(program, tokenizer, files, count):
    """Kills preparations at random moments and begins them again; what comes out has to be what an unbroken run writes."""
    moments = random.Random(0)
    for file in files:
        with tempfile.TemporaryDirectory(dir=CLONE / "target") as scratch:
            scratch = pathlib.Path(scratch)
            plan = pipeline(file, tokenizer, scratch, "[output]\npath = \"out\"\nshard_tokens = 500_000")
            command = [program, "data", "prepare", plan, "--output"]
            whole, wholes = {}, []
            for threads in (2, 1):
                elapsed_s, _ = measure(command + [scratch / f"whole{threads}", "--threads", threads])
                whole[threads] = elapsed_s
                wholes.append(digest(scratch / f"whole{threads}"))
            assert wholes[0] == wholes[1], "one thread writes other bytes than two"
            killed, finished, under_way = 0, 0, False
            while killed < count or under_way:
                process = subprocess.Popen([str(word) for word in command + [scratch / "out"]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                try:
                    # A moment anywhere in a run, until there were enough.
                    process.communicate(timeout=moments.uniform(0, whole[2]) if killed < count else None)
                    assert process.returncode == 0, "a preparation that was begun again failed"
                    assert digest(scratch / "out") == wholes[0], "other bytes than those of an unbroken run"
                    finished, under_way = finished + 1, False
                    shutil.rmtree(scratch / "out")
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    killed, under_way = killed + 1, True
            print(f"{file.name:24} killed {killed} times, {finished} preparations came to their end: all the same bytes, as with one thread", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--kills", type=int)
    parser.add_argument("files", metavar="FILE", type=pathlib.Path, nargs="*")
    arguments = parser.parse_args()
    program = dlm()
    with tempfile.TemporaryDirectory() as scratch:
        files = [file.resolve() for file in arguments.files]
        if not files:
            files = [pathlib.Path(scratch) / "text.jsonl"]
            subprocess.run([sys.executable, CLONE / "scripts/registry_text.py", files[0]], check=True, stdout=subprocess.DEVNULL)
        tokenizer = arguments.tokenizer and arguments.tokenizer.resolve()
        if tokenizer is None:
            tokenizer = pathlib.Path(scratch) / "tokenizer"
            plan = pipeline(files[0], tokenizer, pathlib.Path(scratch))
            measure([program, "tokenizer", "train", plan, "--vocab-size", 8192, "--output", tokenizer])
        if arguments.kills:
            kills(program, tokenizer, files, arguments.kills)
        elif arguments.memory:
            memory(program, tokenizer, files)
        else:
            speed(program, tokenizer, files, arguments.runs)


if __name__ == "__main__":
    main()
