"A ranking does not reward kinship, says what is kin to whom, and writes every pair with its interval."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import one_thread
from trustdd.core.experiment import Experiment, to_dict
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill
from trustdd.evaluation.image_scores import scores_from_logits
from trustdd.evaluation.logits import Logits
from trustdd.evaluation.report import mean_std, report_from_logits
from trustdd.reproduction import comparison
from trustdd.reproduction.artifacts import file_names

SMALL = dict(dataset="digits", method="random", preset="smoke", ipc=1)
OOD = ("skimage-textures", "skimage-text", "corrupted-invert", "gaussian")
KIN = {"corrupted-invert", "gaussian"}  # to POE with invert and speckle
N = 300
WRONG = dict(poe=60, plain=30, sharp=0)  # of N test images
# How sure each network is of OOD images; of in-distribution ones it is about 3. The networks of `poe` and `plain` differ
# more from each other than the sets do, and `poe` is a little worse.
SURE = dict(poe=(2.6, 2.1, 1.6), plain=(1.5, 2, 2.5), sharp=(0.4, 0.4, 0.4))


MISSING = "missing of openood: svhn, places365"


def entrant(name, syn, exp, out, options, reference=False):
    "As `_measured`, from made-up logits: the only networks that know kin are those that learned from it."
    draw, labels = np.random.default_rng(len(name)), torch.arange(N) % 10

    def logits(middle):
        z = torch.zeros(len(middle), N, 10)
        z[:, range(N), labels] = torch.tensor(draw.normal(middle, 1, (N, len(middle))).T).abs().float() + 0.01
        return z

    def of(ood): return logits([0.2] * 3 if exp.outliers == "poe" and ood in KIN else SURE[name])
    known = logits([3.] * 3)
    known[:, :WRONG[name]] = known[:, :WRONG[name]].roll(1, -1)
    values = {"in": known} | {ood: of(ood) for ood in exp.ood}
    every = {ood: torch.arange(N) for ood in exp.ood}
    sources = dict(ood={o: dict(source=f"{o}, made up", n=N, drawn=N) for o in exp.ood}, **{"in": dict(name="digits", source="digits, made up", n=N)})
    about = dict(experiment=to_dict(exp), sources=sources, n_test=0, draw_seed=0, device="cpu")
    made = Logits(values, labels, every, every, about)
    report = report_from_logits(made)
    return comparison.Entrant(name, syn, exp, report, scores_from_logits(made), mean_std(report.accuracy), reference)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    with one_thread():
        for seed, name in enumerate(SURE):
            outliers = "poe" if name == "poe" else "none"
            distill(Experiment(seed=seed, outliers=outliers, **SMALL), device="cpu", progress=False).save(folder/f"{name}.safetensors")
    return {name: folder/f"{name}.safetensors" for name in SURE}


@pytest.fixture
def ranked(files, tmp_path, monkeypatch):
    "A comparison of some of the sets, in the order given."
    monkeypatch.setattr(comparison, "_measured", entrant)
    def ranked(*names, **options):
        made = comparison.compare([files[n] for n in names], tmp_path, device="cpu", references=(), **dict(ood=OOD) | options)
        return SimpleNamespace(made=made, rows={r["set"]: r for r in made.rows}, page=made.page.read_text(encoding="utf-8"),
                               table=pd.read_csv(tmp_path/"comparison.csv"), pairs=pd.read_csv(tmp_path/"differences.csv"))
    return ranked


def test_the_order_within_a_place_does_not_depend_on_kin(ranked):
    found = ranked("poe", "plain")
    poe, plain = found.rows["poe"], found.rows["plain"]
    assert poe["place"] == plain["place"] == 1
    assert poe["near"] > plain["near"]    # with the inverted digits that it learned from
    assert poe["auroc"] < plain["auroc"]  # without
    assert list(found.rows) == ["plain", "poe"]
    assert "mean over skimage-textures, skimage-text, the near and far sets that are kin to no row" in found.page


def test_what_is_kin_is_marked_and_named(ranked):
    found = ranked("poe", "plain")
    assert found.rows["poe"]["kin"] == "corrupted-invert, gaussian"
    assert found.rows["poe"]["with_kin"] == "near, fpr95, noise"
    assert found.rows["plain"]["kin"] == found.rows["plain"]["with_kin"] == ""
    assert "† with OOD sets that are kin to the outliers learned from (poe: corrupted-invert, gaussian)" in found.page
    assert found.page.count(" †</td>") == 3
    lines = str(found.made).splitlines()
    assert [line.count("†") for line in lines] == [0, 0, 3, 1]
    assert found.table.kin.fillna("").tolist() == ["", "corrupted-invert, gaussian"]
    assert found.table.auroc_mean.is_monotonic_decreasing


def test_without_outliers_nothing_is_marked(ranked):
    found = ranked("sharp", "plain")
    assert "†" not in found.page and "†" not in str(found.made)
    assert "mean over skimage-textures, skimage-text, corrupted-invert" in found.page


def test_every_pair_is_written(ranked):
    found = ranked("poe", "plain", "sharp")
    assert [r["place"] for r in found.made.rows] == [1, 2, 2]
    pairs = found.pairs.set_index(["a", "b"])
    assert list(pairs.index) == [("sharp", "plain"), ("sharp", "poe"), ("plain", "poe")]
    assert pairs.supported.tolist() == [True, True, False]
    assert pairs.left_out_as_kin.fillna("").tolist() == ["", "corrupted-invert", "corrupted-invert"]
    for pair, row in pairs.iterrows():
        gap = found.made.gaps[pair]
        assert row[["difference", "low", "high"]].tolist() == pytest.approx([gap.mean, gap.low, gap.high], rel=1e-5)
        assert (row.low > 0 or row.high < 0) == row.supported and row.over == gap.over
        assert f"<td>{pair[0]}</td><td>{pair[1]}</td>" in found.page and gap.interval in found.page


def test_a_set_as_good_as_random_images_is_0_over_them(files, tmp_path, monkeypatch):
    "It was shown as if there were no random images."
    def alike(name, *args): return replace(entrant("plain", *args), name=name)
    monkeypatch.setattr(comparison, "_measured", alike)
    made = comparison.compare([files["plain"]], tmp_path, references="random", device="cpu", ood=OOD)
    assert {r["set"]: r["over_random"] for r in made.rows} == {"plain": 0, "random 1": None}


def test_a_set_of_fewer_images_than_classes_has_references(files, tmp_path, monkeypatch):
    "Soft labels allow that; random images are then one per class."
    syn = DistilledSet.load(files["plain"])
    replace(syn, images=syn.images[:5], labels=syn.labels[:5], soft=torch.full((5, 10), 0.1)).save(tmp_path/"few.safetensors")
    def measured(name, *args): return replace(entrant("plain", *args), name=name)
    monkeypatch.setattr(comparison, "_measured", measured)
    made = comparison.compare([tmp_path/"few.safetensors"], tmp_path/"page", references="random", device="cpu", ood=OOD)
    assert {r["set"]: r["images"] for r in made.rows} == {"few": 5, "random 1": 10}


def test_accuracy_has_no_kin(ranked):
    found = ranked("poe", "plain", by="accuracy")
    assert found.pairs.left_out_as_kin.isna().all() and set(found.pairs.statistic) == {"accuracy"}


def test_where_only_kin_is_left(ranked):
    found = ranked("poe", "plain", ood=("corrupted-invert", "gaussian"))
    assert [(r["set"], r["place"], r["auroc"]) for r in found.made.rows] == [("plain", 1, None), ("poe", 1, None)]
    assert found.pairs[["a", "b", "left_out_as_kin"]].values.tolist() == [["plain", "poe", "corrupted-invert"]]
    assert "not testable" in found.page and "in the order of their accuracy, as each near and far set is kin" in found.page


def test_what_is_missing_of_a_suite_and_what_is_small_is_said(ranked, monkeypatch):
    def lacking(*args):
        made = entrant(*args)
        made.report.sources["missing"] = MISSING
        made.report.sources["ood"]["gaussian"]["drawn"] = 20
        return made
    monkeypatch.setattr(comparison, "_measured", lacking)
    found, few = ranked("poe", "plain"), "warning: gaussian has only 20 images; its numbers say little"
    assert str(found.made).splitlines()[-2:] == [MISSING, few] == list(found.made.notes)
    assert f"<li>{MISSING}</li>" in found.page and f"<li>{few}</li>" in found.page


def test_where_nothing_is_missing_nothing_is_said(ranked):
    assert ranked("plain").made.notes == ()


def test_one_set_alone_has_no_pairs(ranked):
    found = ranked("plain")
    assert found.pairs.empty and list(found.pairs) == list(comparison.PAIR)
    assert "Differences" not in found.page


def test_sets_of_a_run_store_are_named_after_their_runs():
    def names(*files): return file_names([f"published/{f}.safetensors" for f in files])
    assert names("dsa-oe/ipc10/distilled", "dsa-poe/ipc10/distilled", "ours") == ["dsa-oe-ipc10", "dsa-poe-ipc10", "ours"]
    assert names("a/set", "b/set") == ["a-set", "b-set"]
    assert names("b/set.v2") == ["set.v2"]
