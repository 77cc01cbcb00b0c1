#!/usr/bin/env python3
"""Run every test, doc test and example of the workspace, and print how many passed.

Uses cargo-nextest where it is installed and `cargo test` elsewhere.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

CLONE = pathlib.Path(__file__).resolve().parent.parent
# cargo test: "test result: ok. 3 passed; 0 failed; ..."; nextest: "Summary [...] 3 tests run: 3 passed, 1 failed, ..."
# Anchored, since nextest repeats what a failed test printed, indented.
COUNTS = re.compile(r"test result: |\s*Summary \[")


def run(command, quiet=False):
    """Run a command, show what it prints, and count the tests it reports: (passed, failed, exit code)."""
    print(f"\n== {' '.join(command)}", flush=True)
    passed = failed = 0
    process = subprocess.Popen(command, cwd=CLONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    output = []
    for line in process.stdout:
        output.append(line)
        if not quiet:
            print(line, end="", flush=True)
        if COUNTS.match(line):
            passed += sum(int(n) for n in re.findall(r"(\d+) passed", line))
            failed += sum(int(n) for n in re.findall(r"(\d+) failed", line))
    code = process.wait()
    if quiet and code != 0:
        print("".join(output[-60:]), flush=True)
    return passed, failed, code


def examples():
    """The names of the workspace's examples, benchmarks aside."""
    metadata = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version=1"], cwd=CLONE, stdout=subprocess.PIPE, check=True)
    for package in json.loads(metadata.stdout)["packages"]:
        for target in package["targets"]:
            if "example" in target["kind"] and not target["name"].startswith("bench_"):
                yield target["name"]


def main():
    passed = failed = 0
    nextest = shutil.which("cargo-nextest") is not None
    # Several tests run at once, each with threads of OpenMP: those that wait must not spin on the cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # The binary first: whole runs start it.
    build = subprocess.run(["cargo", "build", "--workspace", "--all-targets"], cwd=CLONE)
    if build.returncode != 0:
        sys.exit(build.returncode)
    suites = [["cargo", "nextest", "run", "--workspace", "--no-fail-fast", "--status-level", "fail"]] if nextest else [["cargo", "test", "--workspace", "--all-targets", "--no-fail-fast"]]
    suites.append(["cargo", "test", "--workspace", "--doc", "--no-fail-fast"])
    for suite in suites:
        ok, bad, code = run(suite)
        passed, failed = passed + ok, failed + bad
        if code != 0 and bad == 0:
            failed += 1
    for name in examples():
        # Without `-p`: features are then those of the whole workspace, and nothing is compiled again.
        _, _, code = run(["cargo", "run", "--quiet", "--example", name], quiet=True)
        passed, failed = (passed + 1, failed) if code == 0 else (passed, failed + 1)
        print("passed" if code == 0 else "failed", flush=True)
    print(f"\n{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
