"""Bring a run store of version 0.1 to the fields and names of today.

    python tools/migrate_published.py [STORE]        # published/ if none is named

Fields of experiments have other names, and a method has only its own; so configurations are written anew, and what
is named by a hash of them moves: variants of runs, sides, measured costs. Distilled sets, reports, scores and
experts stay as they are, byte for byte, and are read as they are. A second call changes nothing.
"""
import json
import os
import sys
from pathlib import Path

from trustdd.core.experiment import from_dict, run_name, to_dict
from trustdd.core.storage import atomic_write, digest, read_safetensors
from trustdd.reproduction.sides import SIDES, side_folder

ROOT = Path(__file__).resolve().parent.parent


def rewrite(path, value):
    "Write a JSON file as the run store does, if it says something else so far; was there anything to write?"
    text = json.dumps(value, indent=1) + "\n"
    if path.read_text(encoding="utf-8") == text: return 0
    atomic_write(path, text)
    return 1


def move(old, new):
    "Rename a file or folder, unless it has that name; was there anything to rename?"
    if old == new: return 0
    if new.exists(): sys.exit(f"{old} should become {new}, which is there already")
    new.parent.mkdir(parents=True, exist_ok=True)
    os.replace(old, new)
    return 1


def migrate_run(config, store):
    "A run, or other networks on its set (which move with it)."
    stored = json.loads(config.read_text(encoding="utf-8"))
    more = {k: stored.pop(k) for k in ("changed_from",) if k in stored}
    exp = from_dict(stored)
    written = rewrite(config, to_dict(exp) | more)
    if config.parent.parent.name == "networks": return written, 0
    return written, move(config.parent, store/run_name(exp))


def migrate_side(file, store):
    "One side of gradient matching, known by what is in its file."
    _, meta = read_safetensors(file)
    exp = from_dict(json.loads(meta["side"])["provenance"]["experiment"])
    side = next(s for s in SIDES if f"-{s}-" in file.parent.name)
    return 0, move(file.parent, side_folder(exp, side, store))


def migrate_costs(file, store):
    "A measurement, known by the experiments that were asked for."
    stored = json.loads(file.read_text(encoding="utf-8"))
    exps = [from_dict(e) for e in stored["asked"]["experiments"]]
    named = dict(runs=[run_name(e) for e in exps], iterations=stored["asked"]["iterations"])
    stored["asked"] = named | dict(experiments=[to_dict(e) for e in exps])
    return rewrite(file, stored), move(file, file.with_name(f"{digest(named)}.json"))


def migrate(store):
    "Bring a store up to date: (files written, folders and files renamed)."
    def depth(path): return len(path.parts)
    configs = sorted(store.rglob("config.json"), key=depth, reverse=True)  # networks before their run
    kinds = [(migrate_run, configs), (migrate_side, sorted(store.glob("sides/*/side.safetensors"))),
             (migrate_costs, sorted(store.glob("costs/*/*.json")))]
    done = [kind(path, store) for kind, paths in kinds for path in paths]
    return sum(w for w, _ in done), sum(m for _, m in done)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"published"
    print("{} files written, {} renamed in {}".format(*migrate(folder), folder))
