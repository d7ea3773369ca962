"""How long is one run of each preset? What `trustdd run --dry-run` says on this machine.

`python benchmarks/presets.py` times a few iterations and epochs of runs with pseudo-outliers, from nothing, and writes `presets.json`
beside itself; docs/presets.md shows it. With `--only PRESET ...` it only prints, unless you give `--out FOLDER`.
"""
import argparse, json, sys, tempfile
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent)) # the package of this checkout, installed or not

import torch

from measuring import HERE, surroundings
from trustdd.core.deadline import duration
from trustdd.core.experiment import PRESETS, Experiment, run_name
from trustdd.core.storage import atomic_write
from trustdd.reproduction.estimate import estimate


def experiments(preset):
    "Gradient matching, at a number of images that two cores can do; trajectory matching, but that of `long` is that of `cifar`, and that of `paper` takes days."
    kinds = [dict(method="dsa", ipc=1 if preset == "paper" else 10)]
    if preset not in ("long", "paper"): kinds.append(dict(method="mtt", ipc=1))
    return [Experiment(preset=preset, outliers="poe", **more) for more in kinds]


def row(exp):
    "A run's stages and seconds."
    with tempfile.TemporaryDirectory() as runs: found = estimate(exp, runs)
    return dict(preset=exp.preset, method=exp.method, ipc=exp.ipc, run=run_name(exp), seconds=found.seconds,
                stages={s.name: dict(steps=s.steps, unit=s.unit, first=s.first, each=s.each) for s in found.stages})


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", nargs="+", choices=PRESETS, metavar="PRESET", help="some presets; all")
    p.add_argument("--out", metavar="FOLDER", help="where presets.json is written; beside this file, with --only nowhere")
    args = p.parse_args()
    rows = []
    for preset in args.only or PRESETS:
        for exp in experiments(preset):
            rows.append(row(exp))
            print(f"{duration(rows[-1]['seconds']):>12}  {rows[-1]['run']}", flush=True)
    if args.out or not args.only: atomic_write(Path(args.out or HERE)/"presets.json", json.dumps(dict(machine=surroundings(torch.device("cpu")), rows=rows), indent=1) + "\n")


if __name__ == "__main__": main()
