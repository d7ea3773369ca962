"What a network learns to reject, what it should recognise and what it is tested on stay apart, whatever they are called."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import trustdd
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.distillation.distillation import distill
from trustdd.evaluation.evaluation import evaluate
from trustdd.evaluation.ood_sets import load_ood_sets
from trustdd.networks.training import train
from trustdd.reproduction.comparison import compare
from trustdd.reproduction.items import PaperItem, publish_table, verdict
from trustdd.reproduction.run_store import stored_images
from test_identity import SMALL, here, run, write_images  # noqa: F401 (a fixture)

LEARN, TEST, SHARED, OWN = "n01443537", "n01629820", "n01774384", "n01641577"  # odd; even; CIFAR-10's frogs
CIFAR = ("airplane", "frog")


@pytest.fixture
def no_network(monkeypatch):
    import trustdd.data.catalog as catalog
    def refuse(name, *args): raise AssertionError(f"{name} was to be downloaded")
    monkeypatch.setattr(catalog, "download", refuse)


def cifar(root):
    "Small folders in place of CIFAR-10 and some of the sets that it is tested on."
    for k, name in enumerate(("cifar10", "cifar100", "mnist", "textures", "places365", "lsun", "notmnist")):
        classes = CIFAR if name == "cifar10" else (f"{name}a", f"{name}b")
        write_images(root/name, k, n=30, classes=classes)
    write_images(root/"tinyimagenet32", 99, n=30, classes=(LEARN, TEST, OWN))


# --- suites

def test_a_suite_takes_what_is_at_hand(here, no_network):
    cifar(here/"data")
    images, _ = load_ood_sets("openood", trustdd.load_dataset("cifar10", here/"data"), here/"data")
    five = ["cifar100", "tinyimagenet-no-cifar10", "mnist", "textures", "places365"]
    assert list(images) == five
    made = run(here, dataset="cifar10", ood=("openood",))
    assert list(made.report.ood_values) == five and list(stored_images(made.folder)["ood"]) == five
    assert "\nmissing of openood: svhn" in made.report.summary()
    item = PaperItem("tab01", "smoke", ipc="1", out=here/"out", runs=here/"runs")
    publish_table(item, pd.DataFrame(dict(mean=[1.0])), "A table", verdict(item, "A claim.", None, "numbers"), [made])
    assert "; missing of openood: svhn" in (here/"out"/"tab01.md").read_text().splitlines()[0]
    assert json.loads((here/"out"/"tab01.json").read_text())["missing_ood_sets"] == ["missing of openood: svhn"]
    nets = train(made.distilled, n_nets=1, device="cpu", progress=False)
    for how in (dict(ood="openood"), dict(suite="openood")):
        report = evaluate(nets, made.distilled, device="cpu", root=here/"data", **how)
        assert list(report.ood_values) == five and "missing of openood: svhn" in report.summary()
    with pytest.raises(AssertionError, match="svhn was to be downloaded"):
        evaluate(nets, made.distilled, ood="svhn", device="cpu", root=here/"data")
    write_images(here/"data"/"svhn", 111, n=30, classes=("1", "2"))
    all_six = run(here, dataset="cifar10", ood=("openood",))
    assert all_six.folder != made.folder and "missing" not in all_six.report.summary()


def test_a_comparison_says_what_is_missing(here, no_network):
    cifar(here/"data")
    exp = Experiment(dataset="cifar10", ood=("openood",), **SMALL)
    distill(exp, root=here/"data", device="cpu", progress=False).save("a.safetensors")
    page = compare(["a.safetensors"], "page", 1, device="cpu", root=here/"data", references=()).page
    assert "missing of openood: svhn" in page.read_text()


# --- classes

OE = dict(dataset="cifar10", outliers="oe", ood=("tinyimagenet-test-no-cifar10",))

@pytest.mark.parametrize("aux", ("tinyimagenet", "{data}/tinyimagenet32", "renamed", "link"))
def test_classes_of_the_data_are_not_learned_as_outliers(here, aux):
    cifar(here/"data")
    shutil.copytree(here/"data"/"tinyimagenet32", here/"data"/"renamed")
    (here/"data"/"link").symlink_to(here/"data"/"tinyimagenet32")
    asked = OE | dict(aux=aux.format(data=here/"data"))
    said = rf"has 1 class of 'cifar10' \({OWN}\).* such as aux = 'tinyimagenet-learn-no-cifar10'"
    with pytest.raises(UserError, match=said): run(here, **asked)
    with pytest.raises(UserError, match=said):
        distill(Experiment(**SMALL | asked), root=here/"data", device="cpu", progress=False)


@pytest.mark.parametrize("aux", ("tinyimagenet-no-cifar10", "{data}/renamed", "{data}/tinyimagenet32"))
def test_classes_that_are_tested_are_not_learned(here, aux):
    cifar(here/"data")
    shutil.rmtree(here/"data"/"tinyimagenet32"/"train"/OWN)
    shutil.copytree(here/"data"/"tinyimagenet32", here/"data"/"renamed")
    asked = OE | dict(aux=aux.format(data=here/"data"))
    said = rf"has 1 class of 'tinyimagenet-test-no-cifar10' \({TEST}\)"
    with pytest.raises(UserError, match=said): run(here, **asked)
    with pytest.raises(UserError, match=said): run(here, **asked | dict(ood=()))  # one of the usual sets
    with pytest.raises(UserError, match=said):
        distill(Experiment(**SMALL | asked), root=here/"data", device="cpu", progress=False)


def test_the_usual_halves_are_apart_and_a_suite_marks_them_as_kin(here):
    cifar(here/"data")
    made = run(here, **OE)
    assert made.report.kin == ("tinyimagenet-test-no-cifar10",)
    made = run(here, **OE | dict(ood=("openood",)))
    assert made.report.kin == ("tinyimagenet-no-cifar10",) and "tinyimagenet-no-cifar10 †" in made.report.summary()


def test_folders_with_the_same_classes(here):
    write_images(here/"data"/"pets", 1, n=12)
    write_images(here/"data"/"beasts", 2, n=12, classes=("Cats", "cow"))
    write_images(here/"data"/"odd", 3, n=12, classes=("cow", "hen"))
    with pytest.raises(UserError, match=r"has 1 class of 'pets' \(Cats\)"):
        run(here, dataset="pets", outliers="oe", aux="beasts", ood=("gaussian",))
    with pytest.raises(UserError, match=r"has 1 class of 'odd' \(cow\)"):
        run(here, dataset="digits", outliers="oe", aux="beasts", ood=("odd",))
    made = run(here, dataset="digits", outliers="oe", aux="beasts", ood=("gaussian",))
    with pytest.raises(UserError, match=r"has 1 class of 'odd' \(cow\)"):
        evaluate(train(made.distilled, n_nets=1, device="cpu", progress=False), made.distilled, ood="odd", device="cpu", root=here/"data")


# --- images

def places_of_flat(root):
    "A folder of the data folder without parts, and all other ways to say it."
    write_images(root/"flat", 1, parts=("",), n=30)
    shutil.copytree(root/"flat", root/"twin")
    (root/"linked").symlink_to(root/"flat")
    return {"name": "flat", "path": str(root/"flat"), "dots": f"{root}/../{root.name}/flat/",
            "link": str(root/"linked"), "copy": str(root/"twin")}

WAYS = ("name", "path", "dots", "link", "copy")

@pytest.mark.parametrize("way", WAYS)
def test_no_set_is_distilled_of_images_that_it_is_to_be_tested_on(here, way):
    exp = Experiment(**SMALL | dict(outliers="oe", aux="flat", ood=(places_of_flat(here/"data")[way],)))
    with pytest.raises(UserError, match="aux = 'flat' shares 60 images with '(flat|linked|twin)'"):
        distill(exp, root=here/"data", device="cpu", progress=False)


@pytest.mark.parametrize("way", WAYS)
def test_no_set_is_evaluated_on_images_that_it_was_made_of(here, way):
    ood = places_of_flat(here/"data")[way]
    exp = Experiment(**SMALL | dict(outliers="oe", aux="flat", ood=("gaussian",)))
    syn = distill(exp, root=here/"data", device="cpu", progress=False)
    syn.save("oe.safetensors")
    nets = train(syn, n_nets=1, device="cpu", progress=False)
    options = dict(device="cpu", root=here/"data")
    with pytest.raises(UserError, match="shares 60 images"): evaluate(nets, syn, ood=(ood, "gaussian"), **options)
    images = {"mine": trustdd.load_ood("flat", (1, 8, 8), here/"data")}
    with pytest.raises(UserError, match="shares 60 images"): evaluate(nets, syn, ood=images, **options)
    with pytest.raises(UserError, match="shares 60 images"): compare(["oe.safetensors"], "page", 1, references=(), ood=(ood,), **options)
    (here/"data"/"flat").rename(here/"data"/"moved")  # the set knows what they were
    with pytest.raises(UserError, match="shares 60 images"): evaluate(nets, syn, ood=("moved",), **options)
    evaluate(nets, syn, ood="gaussian", **options)


# --- logits of data that are not here

def test_logits_bring_everything(here, tmp_path):
    rng = np.random.default_rng(0)
    given = {"in": rng.normal(size=(60, 4)), "labels": rng.integers(4, size=60), "mine": rng.normal(size=(60, 4))}
    report = trustdd.evaluate(given, dataset="my private set")
    assert report.summary().startswith("my private set") and list(report.ood_values) == ["mine"]
    assert trustdd.evaluate(given, dataset="/no/such/folder").ood_values == report.ood_values
    with pytest.raises(UserError, match="lack 'labels'") as e:
        trustdd.evaluate({k: v for k, v in given.items() if k != "labels"}, dataset="my private set")
    assert len(str(e.value)) < 250
    named = given | {"mnist": given["mine"], "cifar100": given["mine"]}
    report = trustdd.evaluate(named, dataset="cifar10", suite="openood", root=tmp_path)
    assert list(report.ood_values) == ["cifar100", "mnist"]
    assert "missing of openood: tinyimagenet-no-cifar10, svhn, textures, places365" in report.summary()
    with pytest.raises(UserError, match="none of its sets"): trustdd.evaluate(given, dataset="cifar10", suite="openood", root=tmp_path)


def test_what_is_no_network_and_no_suite():
    for nets in (lambda x: x, [lambda x: x], 3):
        with pytest.raises(UserError, match="is not a network"): trustdd.evaluate(nets, dataset="digits", ood="gaussian")
    with pytest.raises(UserError, match="suite"): trustdd.evaluate(torch.nn.Flatten(), dataset="digits", suite="openodd")
    with pytest.raises(UserError, match="give one"): trustdd.evaluate(torch.nn.Flatten(), dataset="digits", ood="gaussian", suite="usual")
