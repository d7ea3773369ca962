"""Long runs that are not finished yet, kept in the repository so that another machine can go on with them.

    python tools/unfinished.py keep RUNS      # copies checkpoints from the run store RUNS into published/unfinished/
    python tools/unfinished.py lay-back RUNS  # copies them back; then the same `trustdd run` command continues

A checkpoint is laid back only where the store has none, and neither copy of a finished run is touched.
What is finished in RUNS is removed from published/unfinished/ by `keep`.
"""
import shutil
import sys
from pathlib import Path

from trustdd.core.checks import UserError, check_choice
from trustdd.core.storage import atomic_write

KEPT = Path(__file__).resolve().parent.parent/"published"/"unfinished"
# What was seen on the way comes after the checkpoint: rows too many do no harm, a missing one cannot be made again.
FILES = ("config.json", "images.json", "checkpoint.safetensors", "dynamics.jsonl")
DONE = ("distilled.safetensors", "side.safetensors")


def copy(folder, to):
    "Copy what an unfinished run consists of; how many files that are."
    there = [name for name in FILES if (folder/name).exists()]
    for name in there: atomic_write(to/name, (folder/name).read_bytes())
    return len(there)


def unfinished(store):
    "The folders below the store that have a checkpoint and no distilled set."
    folders = [p.parent for p in sorted(store.rglob("checkpoint.safetensors"))]
    return [f for f in folders if not any((f/name).exists() for name in DONE)]


def keep(runs):
    "Copy checkpoints into the repository, and forget those of runs that are finished."
    for folder in unfinished(runs):
        copy(folder, KEPT/folder.relative_to(runs))
        print(f"kept {folder.relative_to(runs)}")
    for folder in unfinished(KEPT) if KEPT.exists() else []:
        name = folder.relative_to(KEPT)
        if not any((runs/name/done).exists() for done in DONE): continue
        shutil.rmtree(folder) # made by this script, of nothing but copies
        print(f"finished: {name}")


def lay_back(runs):
    "Copy checkpoints into the run store, where it has nothing of the run yet."
    for folder in unfinished(KEPT):
        to = runs/folder.relative_to(KEPT)
        if any((to/name).exists() for name in (*DONE, *FILES)):
            print(f"left alone, since it is there: {to}")
        elif copy(folder, to): print(f"laid back: {to}")


def main(words):
    actions = {"keep": keep, "lay-back": lay_back}
    if len(words) != 2: raise UserError(f"needed are two words: {' or '.join(actions)}, and a run store")
    actions[check_choice("action", words[0], actions)](Path(words[1]).resolve())


if __name__ == "__main__":
    try: main(sys.argv[1:])
    except UserError as e: sys.exit(f"unfinished.py: {e}")
