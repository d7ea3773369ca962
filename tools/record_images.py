"""Records which images the runs of version 0.1 were made of, so that they can be told from runs on other images.

    python tools/record_images.py RUNS [DATA]

Version 0.1 noted in words which sets a run used, and how many images of them. A run is recorded as made of the images
that are in the data folder today if those words are still true of them; otherwise nothing is written, and why is said.
Names stand for what they stood for then: the auxiliary set of CIFAR-10, say, was all of TinyImageNet's other classes.
"""
import json
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from trustdd.core.checks import UserError
from trustdd.core.storage import atomic_write
from trustdd.data.catalog import outside_source, prepared
from trustdd.data.identity import have, image_identities, listed_once
from trustdd.data.suites import default_aux
from trustdd.evaluation.report import Report
from trustdd.reproduction.run_store import all_images, stored_experiment


def old_aux(exp):
    "The auxiliary set that an experiment of version 0.1 used."
    return exp.aux or default_aux(exp.dataset).replace("-learn", "")


def said_and_true(report, exp, root):
    "Pairs of sentences: what was said of a run's images, and what would be said today."
    source, shape = own(exp.dataset, exp.holdout, exp.zca, root)
    yield report.sources["in"]["source"], source
    for name, about in report.sources["ood"].items():
        if name.startswith("corrupted-") or name.endswith("-held-out"): continue
        yield about["source"], outside(name, shape, root)


@lru_cache
def own(dataset, holdout, zca, root):
    "Sentence and shape of a data set as it is prepared."
    it = prepared(SimpleNamespace(dataset=dataset, holdout=holdout, zca=zca), root)
    return it.source, it.shape


@lru_cache
def outside(name, shape, root):
    "The sentence of an OOD set."
    return outside_source(name, shape, root)


def record(folder, root):
    "Write images.json into the folder of a run; why not, if it cannot be."
    exp = stored_experiment(folder)
    if not have(exp.dataset, root): return f"{exp.dataset} is not here"
    ood = ()
    if (folder/"report.json").exists():
        report = Report.load(folder)
        ood = [n for n in report.sources["ood"] if not n.endswith("-held-out")]
        missing = [n for n in ood if not n.startswith("corrupted-") and not have(n, root)]
        if missing: return f"{', '.join(missing)} not here"
        for said, true in said_and_true(report, exp, root):
            if said != true: return f"then: {said!r}; now: {true!r}"
    aux = old_aux(exp) if exp.outliers == "oe" or (exp.holdout and not exp.ood) else ""
    known = image_identities(exp.dataset, aux, ood, root) if ood or exp.holdout else all_images(exp, root)
    atomic_write(folder/"images.json", json.dumps(known, indent=1) + "\n")


def main(words):
    if not 1 <= len(words) <= 2: raise UserError("needed is a run store, and perhaps a data folder")
    runs, root = Path(words[0]).resolve(), Path(words[1]).resolve() if len(words) > 1 else None
    folders = [p.parent for p in sorted(runs.rglob("config.json")) if p.parent.name.startswith("seed")]
    done, why = 0, {}
    with listed_once():
        for folder in folders:
            if (folder/"images.json").exists(): continue
            reason = record(folder, root)
            if reason: why[folder] = reason
            else: done += 1
    for folder, reason in why.items(): print(f"{folder.relative_to(runs)}: not recorded; {reason}")
    print(f"{done} of {len(folders)} runs recorded now, {len(why)} could not be")
    return len(why) > 0


if __name__ == "__main__":
    try: sys.exit(main(sys.argv[1:]))
    except UserError as e: sys.exit(f"record_images: {e}")
