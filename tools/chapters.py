"""Test the notebooks of the book, each in a process of its own: python tools/chapters.py [--workers N] [FLAG ...]

A FLAG (slow, data, gpu) runs the cells that are marked so, as `nbdev_test --flags` does. That command
tests many notebooks in one process, where one sees what another has registered or set. Here a process
that has imported torch and other large libraries once is forked for each notebook.
"""
import argparse
import importlib
import multiprocessing.connection
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What many chapters need and what takes long to import: with all of it about 7 s of a core.
IMPORTED = (
    "nbdev.test", "torch", "torchvision", "torch._dynamo", "sklearn.datasets", "sklearn.metrics",
    "papermill", "pytorch_ood.detector", "trustdd")
LONGEST = ("nbs", "guides", "reproduction") # rooms whose notebooks take longest


def chapters(root):
    "All notebooks but those of the atlas, which papermill executes; rooms with the longest first."
    found = [p for p in sorted(root.glob("nbs/**/*.ipynb"))
             if p.parent.name != "paper" and not any(part[0] in "._" for part in p.relative_to(root).parts)]
    return sorted(found, key=lambda p: p.parent.name not in LONGEST)


def tested(path, flags):
    "In a process of its own: end with status 1 if a cell of the notebook fails."
    from nbdev.test import test_nb
    from nbdev.config import get_config
    skipped = get_config().tst_flags.split()
    passed, _ = test_nb(path, skip_flags=skipped, force_flags=flags, basepath=ROOT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not passed) # at once: after a failure a notebook's own processes may be waiting for it


def share_server():
    """Notebooks that start workers or kernels all take copies of one server, which is started here.

    Each would start its own, which takes seconds of a core to import torch. That a child of the
    process that started a server can use it is not in multiprocessing's documentation.
    """
    from multiprocessing import forkserver, resource_tracker
    from trustdd.networks.compute import copying
    context = copying(["ipykernel.ipkernel", "trustdd.reproduction.panels"])
    if context.get_start_method() != "forkserver": return
    first = context.Process(target=int)
    first.start()
    first.join()
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running


def run(paths, flags, workers):
    "Test all; the notebooks that failed, and (seconds, name) of each, slowest first."
    fork, waiting, running, failed, took = (
        multiprocessing.get_context("fork"), list(paths), {}, [], [])
    while waiting or running:
        while waiting and len(running) < workers:
            path = waiting.pop(0)
            process = fork.Process(target=tested, args=(path, flags))
            process.start()
            running[process] = path, time.monotonic()
        multiprocessing.connection.wait([p.sentinel for p in running])
        for process in [p for p in running if not p.is_alive()]:
            process.join()
            path, begun = running.pop(process)
            took.append((time.monotonic() - begun, path.name))
            if process.exitcode: failed.append(path)
    return failed, sorted(took, reverse=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flags", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    for name in IMPORTED: importlib.import_module(name)
    share_server()
    paths = chapters(ROOT)
    failed, took = run(paths, asked.flags, asked.workers)
    print("slowest:", ", ".join(f"{name} {seconds:.0f} s" for seconds, name in took[:5]))
    for path in failed: print(f"failed: {path.relative_to(ROOT)}")
    print(f"{len(paths) - len(failed)} of {len(paths)} notebooks passed")
    sys.exit(bool(failed))


if __name__ == "__main__": main()
