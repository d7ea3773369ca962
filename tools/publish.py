"""Publish what is behind figures/PRESET: python tools/publish.py PRESET [PRESET ...] copies the runs, other networks trained on their sets, and measured costs from runs/ to published/ (no images kept as drawn from real ones).
python tools/publish.py --scores [--to FOLDER] only adds scores.safetensors, made from runs/, to the runs that are published already."""
import argparse, json, sys
from pathlib import Path

from trustdd.core.checks import UserError
from trustdd.core.storage import atomic_write
from trustdd.reproduction.run_store import Run, stored_experiment
from trustdd.reproduction.publishing import add_scores, publish
from trustdd.reproduction.cross_architecture import publish_transfer

ROOT = Path(__file__).resolve().parent.parent
LOGITS = ("fig01", "fig14", "fig16", "fig19", "tab08")  # the only ones drawn from logits; the others need reports and scores


def run_in(folder): return Run(stored_experiment(folder), folder)


def publish_preset(preset, store, to):
    "Every run and every measurement that a figure or table of this preset names."
    needs, costs = {}, set()
    for path in sorted((ROOT/"figures"/preset).glob("*.json")):
        about = json.loads(path.read_text())
        for run in about["runs"]: needs[run] = needs.get(run, False) or path.stem in LOGITS
        costs |= {about["costs"]} if "costs" in about else set()
    if not needs: sys.exit(f"figures/{preset} names no runs; make it first: trustdd paper --preset {preset}")
    for name, logits in sorted(needs.items()):
        if Path(name).parent.name == "networks": publish_transfer(store/name, to/name)
        else: publish(run_in(store/name), to, logits)
    for name in sorted(costs): atomic_write(to/name, (store/name).read_bytes())
    print(f"{preset}: {len(needs)} runs and {len(costs)} measurements in {to}")


def scores_only(store, to):
    "Scores for published runs that have none, from the same runs in `store`; the number of runs left without."
    made, left = 0, []
    for config in sorted(to.rglob("config.json")):
        folder, name = config.parent, config.parent.relative_to(to)
        if (folder/"scores.safetensors").exists(): continue
        there = store/name if (store/name/"config.json").exists() else folder
        try:
            if json.loads((there/"config.json").read_text()) != json.loads(config.read_text()): raise UserError(f"{there} is another configuration")
            if not add_scores(run_in(there), folder): raise UserError("neither scores nor logits are kept")
            made += 1
        except UserError as e: left.append(f"{name}: {e}")
    print("\n".join([f"scores of {made} runs added in {to}", *(f"without: {l}" for l in left)]))
    return len(left)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("presets", nargs="*", metavar="PRESET")
    p.add_argument("--scores", action="store_true", help="only add scores.safetensors to published runs")
    p.add_argument("--runs", type=Path, default=ROOT/"runs", help="the run store to take from")
    p.add_argument("--to", type=Path, default=ROOT/"published", help="the published store")
    args = p.parse_args()
    if not args.presets and not args.scores: p.error("name presets, or --scores")
    for preset in args.presets: publish_preset(preset, args.runs, args.to)
    sys.exit(bool(scores_only(args.runs, args.to)) if args.scores else 0)
