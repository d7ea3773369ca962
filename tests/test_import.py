"Other people's distilled sets are judged as ours are, to the last digit; their files can neither run anything nor slip in a wrong set."
import json, pickle, zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import one_thread
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment, to_dict
from trustdd.data.catalog import load_dataset
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill
from trustdd.distillation.foreign_files import read_torch
from trustdd.distillation.importers import import_set
from trustdd.evaluation.image_scores import scores_from_logits
from trustdd.evaluation.logits import Logits
from trustdd.evaluation.scores import ood_metrics
from trustdd.reproduction.cli import main

SMALL = dict(preset="smoke", ipc=2, iterations=1, width=4, n_nets=2, epochs=3)
FLAGS = "--preset smoke --width 4 --n-nets 2 --epochs 3".split()
pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.filterwarnings("ignore:.*(lr = None|pickle protocol):UserWarning")]


@pytest.fixture(scope="module")
def made():
    "A distilled set of the digits with outliers."
    with one_thread(): yield distill(Experiment(dataset="digits", outliers="poe", **SMALL), device="cpu", progress=False)


def as_mtt(syn, folder, lr=None, name="best"):
    "images_best.pt, labels_best.pt and, if there is one, lr_best.pt."
    torch.save(syn.images, folder/f"images_{name}.pt")
    torch.save(syn.labels, folder/f"labels_{name}.pt")
    if lr is not None: torch.save(lr, folder/f"lr_{name}.pt")
    return folder/f"images_{name}.pt"


def as_dc(syn, folder, method="DSA", outliers=False, first=True):
    "res_METHOD_DATA_MODEL_Nipc.pt with two experiments; ours is the first, or else the second. The accuracies are numpy numbers, as there."
    pairs = lambda x, y: [[x, y], [-x, y]][::1 if first else -1]
    content = {"data": pairs(syn.images, syn.labels), "accs_all_exps": {"ConvNet": [np.float64(28.25), np.float32(1), np.int64(3)]}}
    if outliers: content["data_oe"] = pairs(syn.outliers, torch.zeros(len(syn.outliers)).long())
    torch.save(content, folder/f"res_{method}_digits_ConvNet_2ipc.pt")
    return folder/f"res_{method}_digits_ConvNet_2ipc.pt"


def judge(file, folder, *words):
    "The report of `trustdd evaluate`."
    assert main(["evaluate", str(file), "--ood", "gaussian,skimage-textures", "--device", "cpu", "--out", str(folder), *words]) == 0
    return json.loads((folder/"report.json").read_text())


def ours(syn, folder, lr=None, **changes):
    "The same tensors, saved by ourselves."
    outliers = syn.outliers if changes.get("outliers") else syn.outliers[:0]
    exp = Experiment(**dict(dataset="digits", method="dsa", **{k: v for k, v in SMALL.items() if k != "iterations"}) | changes)
    replace(syn, outliers=outliers, lr=lr, provenance=syn.provenance | dict(experiment=to_dict(exp))).save(folder/"ours.safetensors")
    return folder/"ours.safetensors"


def same(a, b):
    for what in ("accuracy", "ood_values", "errors", "ece", "reliability", "n_test"): assert a[what] == b[what], what
    assert a["experiment"] == b["experiment"]


@pytest.mark.parametrize("words, changes", [
    ([], {}), (["--index", "1"], {}), (["--method", "dc"], dict(method="dc")), (["--outliers", "poe"], dict(outliers="poe")), (["--outliers", "oe"], dict(outliers="oe")),
], ids=str)
def test_dc_files_are_judged_as_ours(made, project, words, changes):
    file = as_dc(made, project, outliers="outliers" in changes, first="--index" not in words)
    assert main(["import", str(file), "--dataset", "digits", *FLAGS, *words, "--out", "theirs.safetensors"]) == 0
    same(judge("theirs.safetensors", project/"a"), judge(ours(made, project, **changes), project/"b"))


@pytest.mark.parametrize("lr, flag", [(torch.tensor(0.03), []), (0.03, []), (None, ["--lr", "0.03"]), (None, [])], ids=str)
def test_mtt_files_are_judged_as_ours(made, project, lr, flag):
    file = as_mtt(made, project, lr)
    assert main(["import", str(file), "--dataset", "digits", *FLAGS, *flag, "--out", "theirs.safetensors"]) == 0
    rate = import_set(file, dataset="digits", lr=flag[1] if flag else None).lr
    assert rate == (None if lr is None and not flag else pytest.approx(0.03))
    theirs = judge("theirs.safetensors", project/"a")
    same(theirs, judge(ours(made, project, lr=rate, method="mtt"), project/"b"))
    if rate: assert theirs["accuracy"] != judge(ours(made, project, method="mtt"), project/"c")["accuracy"] # the step size matters


def test_a_file_of_outliers_beside(made, project):
    torch.save(made.outliers, project/"outliers.pt")
    assert main(["import", str(as_mtt(made, project, 0.03)), "--dataset", "digits", *FLAGS, "--outliers-file", "outliers.pt", "--outliers", "poe", "--out", "theirs.safetensors"]) == 0
    same(judge("theirs.safetensors", project/"a"), judge(ours(made, project, lr=0.03, method="mtt", outliers="poe"), project/"b"))


def test_a_set_says_where_it_is_from(made, project):
    syn = import_set(as_mtt(made, project, 0.03), dataset="digits")
    syn.save("theirs.safetensors")
    again = DistilledSet.load("theirs.safetensors")
    assert again.lr == 0.03 and again.provenance["device"] == "imported" and again.provenance["imported"]["index"] is None
    assert {k: v["name"] for k, v in again.provenance["imported"]["files"].items()} == dict(images="images_best.pt", labels="labels_best.pt", lr="lr_best.pt")
    assert syn.experiment.epochs == 1000 and not syn.experiment.zca
    assert str(project) not in json.dumps(again.provenance)
    assert again.experiment == Experiment(dataset="digits", method="mtt", ipc=2, preset="paper", zca=False)


def test_a_data_set_of_another_size(project):
    digits = load_dataset("digits@16")
    torch.save({"data": [[digits.normalise(digits.images[:10]), torch.arange(10)]]}, project/"res_DSA_digits_ConvNet_1ipc.pt")
    assert main(["import", "res_DSA_digits_ConvNet_1ipc.pt", "--dataset", "digits@16", *FLAGS, "--out", "theirs.safetensors"]) == 0
    assert judge("theirs.safetensors", project/"a")["experiment"]["dataset"] == "digits@16"


def test_whitened_images_are_judged_on_whitened_images(project):
    from trustdd.data.catalog import prepared
    exp = Experiment(dataset="digits", preset="smoke", method="mtt", ipc=1, width=4, epochs=3, zca=True)
    digits = prepared(exp)
    chosen = torch.cat([digits.of_class(c)[:1] for c in range(10)])
    syn = DistilledSet(digits.normalise(digits.images[chosen]), torch.arange(10), torch.empty(0, 1, 8, 8), digits.classes, digits.mean, digits.std, dict(experiment=to_dict(exp)))
    syn.save("ours.safetensors")
    assert main(["import", str(as_mtt(syn, project)), "--dataset", "digits", "--zca", *FLAGS, "--out", "theirs.safetensors"]) == 0
    same(judge("theirs.safetensors", project/"a"), judge("ours.safetensors", project/"b"))
    assert main(["import", str(as_mtt(syn, project)), "--dataset", "digits", *FLAGS, "--out", "plain.safetensors"]) == 0
    assert judge("plain.safetensors", project/"c")["ood_values"] != json.loads((project/"b"/"report.json").read_text())["ood_values"]


def test_the_classes_in_another_order(made, project):
    digits = load_dataset("digits")
    torch.save(9 - made.labels, project/"reversed.pt")
    syn = import_set(as_mtt(made, project), project/"reversed.pt", dataset="digits", classes=digits.classes[::-1])
    assert torch.equal(syn.labels, made.labels) and syn.classes == digits.classes


def test_numpy_numbers_of_old_and_new_numpy(project):
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        torch.save({"data": 1, "accs": [np.float64(1.5), np.float32(2), np.int64(3)]}, project/"now.pt")
        with zipfile.ZipFile(project/"now.pt") as a, zipfile.ZipFile(project/"then.pt", "w") as b:
            for name in a.namelist():
                held = a.read(name)
                if name.endswith("data.pkl"): held = held.replace(b"numpy._core.multiarray", module).replace(b"numpy.core.multiarray", module)
                b.writestr(name, held)
        assert read_torch(project/"then.pt")["data"] == 1


class Runs:
    "A pickle that writes a file when it is read."
    def __init__(self, call, *args): self.what = call, args
    def __reduce__(self): return self.what


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["os.system", "eval", "getattr"])
def test_a_file_cannot_run_anything(made, project, capfd, old, name):
    import os
    evil = {"os.system": Runs(os.system, "touch owned"), "eval": Runs(eval, "open('owned', 'w')"), "getattr": Runs(getattr, "x", "upper")}[name]
    torch.save({"data": [[made.images, made.labels]], "accs_all_exps": evil}, "res_DC_digits_ConvNet_2ipc.pt", _use_new_zipfile_serialization=not old)
    assert main(["import", "res_DC_digits_ConvNet_2ipc.pt", "--dataset", "digits", "--out", "theirs.safetensors"]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and "res_DC_digits_ConvNet_2ipc.pt" in err and "refused" in err and name.split(".")[-1] in err and not out
    assert not (project/"owned").exists() and not (project/"theirs.safetensors").exists()


def test_a_plain_pickle_is_not_read(made, project):
    import os
    for name, what in (("plain.pt", [1, 2]), ("evil.pt", Runs(os.system, "touch owned"))):
        (project/name).write_bytes(pickle.dumps(what))
        with pytest.raises(UserError, match=name): import_set(project/name, dataset="digits", method="dsa")
    assert not (project/"owned").exists()


def spoil(syn, what):
    "Tensors with one thing wrong."
    x, y = syn.images.clone(), syn.labels.clone()
    if what == "nan": x[3, 0, 0, 0] = float("nan")
    if what == "short": y = y[:-1]
    if what == "high": y[0] = 10
    if what == "rows": y = torch.nn.functional.one_hot(y, 10) * 3. + torch.rand(len(y), 10)
    if what == "bytes": x = (x > 0).byte()
    if what == "between": x = x + 5
    if what == "missing": y[y == 4] = 5
    return x, y


@pytest.mark.parametrize("what, said", [
    ("nan", "NaN image 3"), ("short", "(19,) 20 images"), ("high", "0 to 10 10 classes"), ("rows", "--soft softmax argmax"), ("bytes", "uint8 normalised"), ("between", "neither normalised"), ("missing", "leave out 1 of the 10"),
])
@pytest.mark.parametrize("layout", ["mtt", "dc"])
def test_wrong_tensors(made, project, capfd, layout, what, said):
    x, y = spoil(made, what)
    wrong = replace(made, images=x, labels=y)
    file = (as_mtt if layout == "mtt" else as_dc)(wrong, project)
    assert main(["import", str(file), "--dataset", "digits", "--out", "theirs.safetensors"]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and not out and not (project/"theirs.safetensors").exists()
    for part in said.split(): assert part in err


@pytest.mark.parametrize("words, said", [
    ("images_best.pt --dataset digits@16", "(20, 1, 8, 8) digits (1, 16, 16)"),
    ("images_best.pt --dataset nosuch", "nosuch"),
    ("images_2.pt --dataset digits", "labels_2.pt not beside"),
    ("images_best.pt --dataset digits --labels none.pt", "none.pt not there"),
    ("images_best.pt --dataset digits --lr fast.pt", "fast.pt not there"),
    ("images_best.pt --dataset digits --lr 0", "lr above 0"),
    ("images_best.pt --dataset digits --index 0", "index one set"),
    ("images_best.pt --dataset digits --outliers poe", "poe holds none"),
    ("images_best.pt --dataset digits --outliers poe --outliers-file few.pt", "few.pt (1, 4, 4) digits"),
    ("images_best.pt --dataset digits --recipe dm", "dm dc, dsa, mtt"),
    ("images_best.pt --dataset digits --mean 0.5", "mean std both"),
    ("images_best.pt --dataset digits --mean 0.5 --std zero", "zero numbers"),
    ("images_best.pt --dataset digits --classes cat,dog", "cat, dog digits"),
    ("images_best.pt --dataset digits --epochs 0", "epochs 0"),
    ("cut.pt --dataset digits --method mtt", "cut.pt cut short"),
    ("other.pt --dataset digits --method mtt", "other.pt --labels"),
    ("mine.pt", "mine.pt --labels --dataset --recipe"),
    ("res_DSA_digits_ConvNet_2ipc.pt --dataset digits --index 2", "index 2 0 to 1"),
    ("res_DSA_digits_ConvNet_2ipc.pt --dataset digits --labels labels_best.pt", "labels_best.pt itself"),
    ("res_DSA_digits_ConvNet_2ipc.pt --dataset digits", "outliers oe poe"),
    ("nothing.pt --dataset digits --method mtt", "nothing.pt not there"),
    ("images_best.pt", "--dataset"),
], ids=str)
def test_wrong_words(made, project, capfd, words, said):
    as_mtt(made, project); as_dc(made, project, outliers=True)
    for name, content in (("images_2.pt", made.images), ("mine.pt", made.images), ("few.pt", torch.randn(3, 1, 4, 4)), ("other.pt", {"pixels": made.images})): torch.save(content, project/name)
    (project/"cut.pt").write_bytes((project/"images_best.pt").read_bytes()[:-100])
    assert main(["import", *words.split(), "--out", "theirs.safetensors"]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("trustdd: ") and err.count("\n") == 1 and not out and not (project/"theirs.safetensors").exists()
    for part in said.split(): assert part in err, err


def test_evaluate_with_fewer_epochs_says_so(made, project, capfd):
    made.save("ours.safetensors")
    report = judge("ours.safetensors", project/"a", "--epochs", "1", "--n-nets", "1")
    assert report["experiment"]["epochs"] == 1 and len(report["accuracy"]) == 1
    capfd.readouterr()
    assert main(["evaluate", "ours.safetensors", "--epochs", "0"]) == 2
    assert "epochs = 0" in capfd.readouterr().err


def test_evaluate_by_the_published_codes_rules(made, project, capfd):
    "The second table has what the same logits give by those rules; the report keeps to ours."
    made.save("ours.safetensors")
    words = ["--epochs", "1", "--n-nets", "2", "--ood", "gaussian"]
    assert main(["evaluate", "ours.safetensors", *words, "--out", "a", "--fpr95", "nearest", "--aupr", "trapezoid"]) == 0
    head, _, line = capfd.readouterr().out.strip().splitlines()[-3:]
    found = scores_from_logits(Logits.load("a/logits.safetensors"))
    nets = [ood_metrics(*found.pair(k, "gaussian"), "nearest", "trapezoid") for k in range(2)]
    assert line.split() == ["gaussian", *(f"{sum(net[m] for net in nets) / 2:.1f}" for m in nets[0])]
    assert "fpr95_in (nearest)" in head and "aupr_out (trapezoid)" in head
    assert main(["evaluate", "ours.safetensors", *words, "--out", "b"]) == 0
    assert "nearest" not in capfd.readouterr().out
    assert (project/"a"/"report.json").read_bytes() == (project/"b"/"report.json").read_bytes()
