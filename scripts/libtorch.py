#!/usr/bin/env python3
"""Prepare libtorch for this clone, from the PyTorch wheel on PyPI, and link it as `.libtorch`.

    python3 scripts/libtorch.py

Nothing is done when `LIBTORCH` or `LIBTORCH_USE_PYTORCH` is set, or when the work was done before. The folder lives once per
user, in `$XDG_CACHE_HOME/dlm/`. With an NVIDIA GPU, or `DLM_CUDA=1`, it holds the whole wheel and its CUDA libraries;
otherwise (or with `DLM_CUDA=0`) only what a CPU needs, about 425 MB. Only the standard library, pip and a C compiler are used.
"""
import fcntl
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import zipfile

VERSION = "2.13.0"  # tch 0.26 wants exactly this one
WHEELS = [f"torch=={VERSION}", "nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"]
# libtorch_cpu.so of the wheel needs these two even where there is no GPU.
NVIDIA_LIBRARIES = ("libcudart.so.13", "libcupti.so.13")
CPU_LIBRARIES = ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")
CLONE = pathlib.Path(__file__).resolve().parent.parent


def fail(what, advice):
    sys.exit(f"error: {what}\n  help: {advice}")


def run(command, what, advice):
    try:
        subprocess.run(command, check=True)
    except OSError as error:
        fail(f"{what}: {error}", advice)
    except subprocess.CalledProcessError as error:
        fail(f"{what} (exit code {error.returncode}; its own words are above)", advice)


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "dlm"


def wants_cuda():
    choice = os.environ.get("DLM_CUDA")
    if choice is not None:
        return choice not in ("", "0", "false")
    return pathlib.Path("/proc/driver/nvidia/version").exists()


def pip(*arguments):
    check = [sys.executable, "-m", "pip", "--version"]
    if subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0:
        fail(
            f"{sys.executable} has no pip, which is needed once to download libtorch {VERSION}",
            "install it (Debian: `apt-get install python3-pip`), or set `LIBTORCH` to a folder that holds libtorch " + VERSION,
        )
    run(
        [sys.executable, "-m", "pip", *arguments],
        "pip could not get libtorch's wheels",
        "check the network and the free disk space, then run the same command again: finished downloads are kept",
    )


def cpu_folder(folder):
    """Download the wheels, unpack what a CPU needs beside `folder`, and rename it into place."""
    machine = platform.machine()
    downloads = folder.with_name(folder.name + ".download")
    downloads.mkdir(exist_ok=True)
    # One Python version and platform for all, so that the interpreter at hand does not matter.
    target = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "none", "--only-binary=:all:"]
    for tag in ("manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014"):
        target += ["--platform", f"{tag}_{machine}"]
    pip("download", "--quiet", "--no-deps", "--dest", str(downloads), *target, *WHEELS)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    lib = partial / "lib"
    lib.mkdir(parents=True)
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("torch/include/") and not name.endswith("/"):
                    target_path = partial / pathlib.PurePosixPath(name).relative_to("torch")
                elif name.rsplit("/", 1)[-1] in CPU_LIBRARIES + NVIDIA_LIBRARIES:
                    target_path = lib / name.rsplit("/", 1)[-1]
                else:
                    continue
                target_path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, open(target_path, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    missing = [name for name in CPU_LIBRARIES + NVIDIA_LIBRARIES if not (lib / name).exists()]
    if missing:
        fail(f"the wheels hold no {', '.join(missing)}", f"set `LIBTORCH` to a folder that holds libtorch {VERSION}")
    # The wheel's own libtorch.so pulls in 3 GB of CUDA; an empty one that needs only the CPU part takes its place.
    link = ["-shared", "-o", str(lib / "libtorch.so"), "-Wl,--no-as-needed", f"-L{lib}", "-ltorch_cpu", "-lc10"]
    link += ["-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN"]
    run([os.environ.get("CC", "cc"), *link], "the C compiler could not link libtorch.so", "install a C++ compiler (Debian: `apt-get install g++`)")
    (partial / "build-version").write_text(VERSION + "+cpu\n")
    os.replace(partial, folder)
    shutil.rmtree(downloads, ignore_errors=True)


def cuda_folder(folder):
    """Install the whole wheel with its requirements; libtorch is its `torch` folder."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pip("install", "--quiet", "--target", str(partial), f"torch=={VERSION}")
    (partial / "torch" / "build-version").write_text(VERSION + "\n")
    os.replace(partial, folder)


def main():
    for name in ("LIBTORCH", "LIBTORCH_USE_PYTORCH"):
        if os.environ.get(name):
            print(f"libtorch: as `{name}` says ({os.environ[name]})", file=sys.stderr)
            return
    if sys.platform != "linux":
        fail(f"libtorch is prepared on Linux only, not on {sys.platform}", f"install torch {VERSION} and set `LIBTORCH_USE_PYTORCH=1`")
    cuda = wants_cuda()
    folder = cache_folder() / f"libtorch-{VERSION}-{'cuda' if cuda else 'cpu'}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = open(folder.with_name(folder.name + ".lock"), "w")
        except OSError as error:
            fail(f"{folder.parent} cannot be written: {error.strerror}", "set `XDG_CACHE_HOME` to a folder that can")
        fcntl.flock(lock, fcntl.LOCK_EX)  # two clones may set up at once
        if not folder.exists():
            print(f"libtorch: preparing {folder} (once per user, a download of about 550 MB)", file=sys.stderr)
            try:
                (cuda_folder if cuda else cpu_folder)(folder)
            except OSError as error:
                fail(f"libtorch could not be unpacked: {error}", "about 1.2 GB of disk is needed; free some and run the same command again")
    target = folder / "torch" if cuda else folder
    link = CLONE / ".libtorch"
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    temporary = CLONE / f".libtorch.{os.getpid()}"
    temporary.symlink_to(target)
    os.replace(temporary, link)
    print(f"libtorch: {target}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
