"""How long does the atlas take from nothing, now and at an earlier commit?

`python benchmarks/atlas.py` makes all figures and tables of the preset `quick` in a fresh clone of HEAD, with an empty run store, and writes what it took into `atlas.json` beside
itself. `--before COMMIT` does so at that commit as well, `--only fig02,tab01` for some items, such as those that both have. Best on an otherwise idle machine.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent)) # the package of this checkout, installed or not

import torch

from measuring import HERE, machine
from trustdd.core.storage import atomic_write


def git(*words): return subprocess.run(["git", "-C", HERE.parent, *words], check=True, capture_output=True, text=True).stdout.strip()


def made(commit, preset, only, folder):
    "Seconds of making these items at that commit, and the .csv files that came out."
    subprocess.run(["git", "clone", "-q", "--no-checkout", HERE.parent, folder/"clone"], check=True)
    subprocess.run(["git", "-C", folder/"clone", "checkout", "-q", commit], check=True)
    words = ["paper", "--preset", preset, "--runs", folder/"runs", "--out", folder/"figures", *(["--only", only] if only else [])]
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRUSTDD_")} | dict(PYTHONPATH=str(folder/"clone"))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "trustdd", *map(str, words)], check=True, cwd=folder/"clone", env=env)
    return time.perf_counter() - began, {f.name: f.read_bytes() for f in sorted((folder/"figures").glob("*.csv"))}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--preset", default="quick", help="quick")
    p.add_argument("--only", default="", help="some items, by commas; all")
    p.add_argument("--before", metavar="COMMIT", help="an earlier commit, to compare with")
    p.add_argument("--out", type=Path, default=HERE, help="folder of atlas.json; beside this file")
    asked = p.parse_args()
    rows = []
    for name in filter(None, (asked.before, "HEAD")):
        commit = git("rev-parse", "--short=12", name)
        with tempfile.TemporaryDirectory() as folder: seconds, files = made(commit, asked.preset, asked.only, Path(folder))
        rows.append(dict(preset=asked.preset, items=len({f.split(".")[0] for f in files}), only=asked.only, commit=commit, committed=git("show", "-s", "--format=%cs", commit), seconds=seconds,
                         date=time.strftime("%Y-%m-%d"), machine=machine(torch.device("cpu")), torch=torch.__version__))
        rows[-1]["same_csv"] = None if len(rows) < 2 else sum(files[f] == other.get(f) for f in files)
        other = files
        print(f"{commit}: {rows[-1]['items']} items in {seconds:.0f} s", flush=True)
    file = asked.out/"atlas.json"
    key = lambda r: (r["preset"], r["only"])
    known = [r for r in (json.loads(file.read_text()) if file.exists() else []) if key(r) != key(rows[0])]
    atomic_write(file, json.dumps([*known, *rows], indent=1) + "\n")


if __name__ == "__main__": main()
