"""A Python environment with packages from PyPI, for programs that compare dlm with what Python does.

It lives in `target/venv-<names>` of this clone and is made once. `PEER_VENV=FOLDER` names one that is there already.
"""
import os
import pathlib
import subprocess
import sys

CLONE = pathlib.Path(__file__).resolve().parent.parent


def environment(*packages):
    """The interpreter of an environment that has these packages."""
    if os.environ.get("PEER_VENV"):
        return pathlib.Path(os.environ["PEER_VENV"]) / "bin/python"
    folder = CLONE / "target" / ("venv-" + "-".join(sorted(packages)))
    ready = folder / "ready"
    if not ready.exists():
        print(f"preparing {folder} with {', '.join(packages)} from PyPI", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
        ready.touch()
    return folder / "bin/python"
