#!/usr/bin/env python3
"""Runs the golden tests of dlm-diffusion and prints, for each golden file, its cases and the largest error that was seen.

DLM_GOLDEN=FOLDER takes other golden data. Errors are relative to the larger of 1 and the golden number; ids and masks are compared exactly.
"""

import os
import subprocess
import sys
import tempfile
from collections import defaultdict

with tempfile.TemporaryDirectory() as folder:
    notes = os.path.join(folder, "errors.tsv")
    open(notes, "w").close()
    command = ["cargo", "test", "--quiet", "-p", "dlm-diffusion", "golden"]
    done = subprocess.run(command, env=os.environ | {"GOLDEN_TABLE": notes}, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    cases, errors, counts = defaultdict(set), defaultdict(float), defaultdict(int)
    for line in open(notes):
        file, what, error = line.rstrip("\n").split("\t")
        cases[file].add(what.split(":")[0])
        errors[file] = max(errors[file], float(error))
        counts[file] += 1

print("| golden file | cases | comparisons | largest error |\n|---|---|---|---|")
for file in sorted(cases):
    print(f"| `{file}` | {len(cases[file])} | {counts[file]} | {errors[file]:.1e} |")
