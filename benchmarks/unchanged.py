"""Do the runs that the figures show still come out as they did, now that the code is faster?

`python benchmarks/unchanged.py cifar --ipc 1` makes published runs of gradient matching again, with the code as it is, in a run store of its own, and sets both side by
side: accuracy and mean OOD AUROC (MSP), then and now. A line holds if neither mean has moved by more than the standard deviation over networks and seeds that it had.
It writes `unchanged.json` beside itself (lines of presets that were not asked for stay), and README.md is made of that. Exit status 1 if a line does not hold.
"""
import argparse, json, sys, tempfile, time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent)) # the package of this checkout, installed or not

import torch

from measuring import HERE, machine
from trustdd.core.checks import check_choice, UserError
from trustdd.core.experiment import Experiment, OUTLIERS, run_name
from trustdd.core.storage import atomic_write, commit, project_root
from trustdd.evaluation.evaluation import combine
from trustdd.reproduction.run_store import Run
from trustdd.reproduction.runs import run_all

PUBLISHED = project_root()/"published"
DATA = {"quick": "digits", "cifar": "cifar10"}


def wanted(preset, ipcs, seeds, method="dsa"):
    "A list for each setting: its published runs, one for each seed."
    exps = [[Experiment(preset=preset, dataset=DATA[preset], method=method, outliers=o, ipc=ipc, seed=s) for s in seeds] for ipc in ipcs for o in OUTLIERS]
    groups = [[Run(e, PUBLISHED/run_name(e)) for e in group] for group in exps]
    for run in (r for group in groups for r in group):
        if not (run.folder/"report.json").exists(): raise UserError(f"{run_name(run.exp)} is not among the published runs")
    return groups


def measures(runs):
    "name -> (mean, standard deviation over networks and seeds)."
    report = combine(r.report for r in runs)
    return {"accuracy": (report.accuracy_mean, report.accuracy_std), "auroc": report.mean_auroc()}


def row(before, now):
    "What one setting gave then and gives now."
    exp, then, here = before[0].exp, measures(before), measures(now)
    pairs = [(a.distilled, b.distilled) for a, b in zip(before, now)]
    return dict(preset=exp.preset, method=exp.method, outliers=exp.outliers, ipc=exp.ipc, seeds=[r.exp.seed for r in before], networks=sum(r.report.n_nets for r in before),
                commits=sorted({a.provenance["commit"] for a, _ in pairs}), same_bits=sum(torch.equal(a.images, b.images) and torch.equal(a.outliers, b.outliers) for a, b in pairs),
                then=then, now=here, held=all(abs(here[m][0] - then[m][0]) <= then[m][1] for m in then))


def table(rows):
    "Heads and rows as texts."
    pair = lambda v: f"{v[0]:.1f} ± {v[1]:.1f}"
    head = ["preset", "set", "IPC", "seeds", "accuracy then", "now", "AUROC then", "now", "same to the bit", "within ±"]
    return [head, *([r["preset"], f"{r['method'].upper()} {r['outliers']}", str(r["ipc"]), ", ".join(map(str, r["seeds"])), pair(r["then"]["accuracy"]), pair(r["now"]["accuracy"]),
                     pair(r["then"]["auroc"]), pair(r["now"]["auroc"]), f"{r['same_bits']} of {len(r['seeds'])}", "yes" if r["held"] else "no"] for r in rows)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(x) for x in text.split(",")]
    p.add_argument("preset", help="quick or cifar")
    p.add_argument("--ipc", type=numbers, default=[1, 10], help="images per class; 1,10")
    p.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="of the published runs; 0,1,2")
    p.add_argument("--store", type=Path, help="folder where the runs are made, and found again after an interruption; a temporary one")
    p.add_argument("--workers", type=int, help="runs at a time, each on one thread; as many as there are cores")
    p.add_argument("--out", type=Path, default=HERE, help="folder of unchanged.json; beside this file")
    asked = p.parse_args()
    try: groups = wanted(check_choice("preset", asked.preset, DATA), asked.ipc, asked.seeds)
    except UserError as e: p.error(str(e))
    with tempfile.TemporaryDirectory() as scratch:
        made = run_all([r.exp for group in groups for r in group], asked.store or Path(scratch), asked.workers, device="cpu")
        now = iter(made)
        rows = [dict(row(group, [next(now) for _ in group]), date=time.strftime("%Y-%m-%d"), commit=commit(), machine=machine(torch.device("cpu")), torch=torch.__version__) for group in groups]
    for line in table(rows): print("  ".join(x.ljust(14) for x in line).rstrip())
    file = asked.out/"unchanged.json"
    key = lambda r: (r["preset"], r["method"], r["outliers"], r["ipc"])
    known = [r for r in (json.loads(file.read_text()) if file.exists() else []) if key(r) not in set(map(key, rows))]
    atomic_write(file, json.dumps(sorted([*known, *rows], key=lambda r: (list(DATA).index(r["preset"]), r["ipc"], OUTLIERS.index(r["outliers"]))), indent=1) + "\n")
    return 0 if all(r["held"] for r in rows) else 1


if __name__ == "__main__": sys.exit(main())
