"""Make a few small experiments with the `trustdd` that is imported, and write what came out.

    python tools/same_bytes.py before.json                    # with the code as it was
    python tools/same_bytes.py after.json --against before.json

For each experiment the file has the SHA-256 of every tensor of its distilled set, its accuracies and its
out-of-distribution AUROC. With `--against` it says which of them differ, and exits with 1 if one does.
Only names that a user has are imported, so that one script runs with any version of the package.
"""
import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

TINY = dict(dataset="digits", preset="smoke", ipc=1, iterations=3, n_nets=2, epochs=4, n_test=50)
TINY["ood"] = ("gaussian", "skimage-text")
QUICK = {**TINY, "preset": "quick", "iterations": 2, "n_nets": 1, "epochs": 6, "n_test": 100}
EXPERTS = dict(experts=2, train_epochs=3, expert_epochs=2, max_start_epoch=2)
LOOPS = dict(ipc=5, outer=2, inner=2, iterations=2)
VARIANTS = {
    "dsa poe loops": {**TINY, **LOOPS, "method": "dsa", "outliers": "poe"},
    "dc oe loops": {**TINY, **LOOPS, "method": "dc", "outliers": "oe"},
    "dsa poe batch norm": {**TINY, **LOOPS, "method": "dsa", "outliers": "poe", "norm": "batch"},
    "dsa poe from noise": {**TINY, "method": "dsa", "outliers": "poe", "init": "noise"},
    "dsa none mse": {**TINY, "method": "dsa", "outliers": "none", "metric": "mse"},
    "dsa oe fixed outliers": {**TINY, "method": "dsa", "outliers": "oe", "distill_outliers": False},
    "dsa poe validated": {**TINY, "method": "dsa", "outliers": "poe", "holdout": 0.2, "watch": (0, 3),
                          "ood": ()},
    "dsa poe mlp": {**TINY, "method": "dsa", "outliers": "poe", "model": "mlp"},
    "dsa none at 16 px": {**TINY, "method": "dsa", "outliers": "none", "dataset": "digits@16"},
    "mtt poe whitened": {**TINY, **EXPERTS, "method": "mtt", "outliers": "poe", "zca": True},
    "mtt poe in batches": {**TINY, **EXPERTS, "method": "mtt", "outliers": "poe", "batch_syn": 4},
    "full none": {**TINY, "method": "full", "outliers": "none", "epochs": 1},
}


def experiments():
    "Name -> fields: every method with every kind of outliers in two presets, and the variants."
    asked = {}
    for preset, fields in (("smoke", TINY), ("quick", QUICK)):
        for method in ("dc", "dsa", "mtt", "random"):
            for outliers in ("none", "oe", "poe"):
                more = EXPERTS if method == "mtt" else {}
                name = f"{preset} {method} {outliers}"
                asked[name] = {**fields, **more, "method": method, "outliers": outliers}
    return asked | VARIANTS


def digest(tensor):
    "SHA-256 of a tensor's type, shape and bytes; of a number's text."
    if not hasattr(tensor, "numpy"): return repr(tensor)
    array = tensor.detach().cpu().contiguous().numpy()
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def made(fields, store):
    "What an experiment comes to: its tensors and its numbers."
    import trustdd
    if fields["method"] in ("random", "full"): # which have no iterations
        fields = {k: v for k, v in fields.items() if k != "iterations"}
    run = trustdd.load_or_run(trustdd.Experiment(**fields), store, "cpu", progress=False)
    got = {"accuracy": [float(a) for a in run.report.accuracy]}
    table = run.report.ood.drop(columns="group", errors="ignore") # which older versions lack
    got["ood"] = [[str(v) for v in row] for row in table.reset_index().values.tolist()]
    if fields["method"] not in ("random", "full"):
        got["losses"] = [line["loss"] for line in run.losses if "loss" in line]
    if fields["method"] != "full":
        for part in ("images", "labels", "outliers", "lr"):
            got[part] = digest(getattr(run.distilled, part))
    return got


def differences(before, after):
    "A line for every value that is not the same, and for every experiment that only one of them has."
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{name}: only {'after' if old is None else 'before'}"
            continue
        for part in sorted(old.keys() | new.keys()):
            if old.get(part) != new.get(part): yield f"{name}: {part} differ"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the JSON to write")
    parser.add_argument("--against", type=Path, help="a JSON of another version to compare with")
    parser.add_argument("--only", default="", help="only experiments with this in their name")
    args = parser.parse_args()
    import torch
    import trustdd
    torch.set_num_threads(1)
    results, began = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as store:
        for name, fields in experiments().items():
            if args.only not in name: continue
            try: results[name] = made(fields, store)
            except Exception as error: results[name] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{time.monotonic() - began:6.1f} s  {name}", results[name].get("error", ""), flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results)} experiments with trustdd {trustdd.__version__} in {args.out}")
    if not args.against: return 0
    before = json.loads(args.against.read_text(encoding="utf-8"))
    wrong = list(differences({k: v for k, v in before.items() if args.only in k}, results))
    print("\n".join(wrong) or "all the same")
    return int(bool(wrong))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
