"Copy the runs behind figures/PRESET from runs/ to published/ (no images kept as drawn from real ones): python tools/publish.py PRESET [PRESET ...]"
import json, sys
from pathlib import Path

from trustdd.config import Experiment
from trustdd.runs import Run, publish

ROOT = Path(__file__).resolve().parent.parent
LOGITS = ("fig01", "fig02")  # the only ones drawn from logits; the others need reports

for preset in sys.argv[1:]:
    needs = {}
    for about in sorted((ROOT/"figures"/preset).glob("*.json")):
        for run in json.loads(about.read_text())["runs"]: needs[run] = needs.get(run, False) or about.stem in LOGITS
    if not needs: sys.exit(f"figures/{preset} names no runs; make it first: trustdd paper --preset {preset}")
    for name, logits in sorted(needs.items()):
        folder = ROOT/"runs"/name
        publish(Run(Experiment(**json.loads((folder/"config.json").read_text())), folder), ROOT/"published", logits)
    print(f"{preset}: {len(needs)} runs in published/")
