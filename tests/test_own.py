"Corruptions, scores and sets of images of one's own work like those that are built in."
import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from PIL import Image

import trustdd
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment, run_name
from trustdd.data import own
from trustdd.evaluation.ood_sets import load_ood_sets
from trustdd.evaluation.scores import FITTED, SCORES
from trustdd.reproduction.run_store import stored_images
from trustdd.reproduction.runs import load_or_run

SMALL = dict(dataset="digits", preset="smoke", method="random", ipc=1, n_nets=1, epochs=1,
             n_test=20, ood=("gaussian", "skimage-text"))
BLUR = "import torch\ndef {}(x): return torch.nn.functional.avg_pool2d(x, {}, 1, {})\n"


@pytest.fixture(autouse=True)
def registries():
    "What a test registers is gone after it."
    with patch.dict(own.CORRUPTIONS), patch.dict(own._sources), patch.dict(own._images): yield


def register_blur(width=3, name="blur"):
    "As a cell of a notebook would, which may be executed again with another width."
    where = dict(__name__="__main__")
    exec(BLUR.format(name, width, width // 2), where)
    trustdd.corruption("blur")(where[name])


def test_a_corruption_makes_outliers_and_a_test_set(tmp_path):
    register_blur()
    exp = Experiment(outliers="poe", corruptions="blur,speckle",
                     **SMALL | dict(ood=("gaussian", "corrupted-blur")))
    run = load_or_run(exp, tmp_path, "cpu", progress=False)
    assert run.exp.corruptions == ("blur", "speckle")
    assert set(run.report.ood_values) == {"gaussian", "corrupted-blur"}
    assert set(run.report.kin) == {"gaussian", "corrupted-blur"}  # speckle is kin to noise
    hashed = own.recorded(corruption=["blur"])["own"]
    assert run.distilled.provenance["own"] == hashed
    stored = stored_images(run.folder)
    assert stored["own"] == hashed and stored["ood"]["corrupted-blur"] == hashed["corruption blur"]


def test_another_version_of_it_is_another_run(tmp_path):
    register_blur()
    exp = Experiment(outliers="poe", corruptions="blur", **SMALL)
    none = load_or_run(replace(exp, outliers="none", outliers_per_slot=0), tmp_path, "cpu", progress=False)
    first = load_or_run(exp, tmp_path, "cpu", progress=False)
    register_blur(5)
    other = load_or_run(exp, tmp_path, "cpu", progress=False)
    assert first.folder.name == run_name(exp).split("/")[-1] != other.folder.name
    assert not torch.equal(first.distilled.outliers, other.distilled.outliers)
    register_blur(3)
    again = load_or_run(exp, tmp_path, "cpu", progress=False)
    assert again.folder == first.folder
    assert "own" not in stored_images(none.folder)  # a run that learns without it does not change


def test_a_name_of_another_is_refused():
    register_blur()
    with pytest.raises(UserError, match="'blur' is taken"): register_blur(name="smear")
    with pytest.raises(UserError, match="'blurr' is unknown; choose one of: jigsaw.*, blur"):
        Experiment(outliers="poe", corruptions="blurr", **SMALL)


def squares(value):
    x = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    x[:, :, 2:6, 2:6] = value
    return x + torch.arange(40, dtype=torch.uint8)[:, None, None, None]


def test_sets_of_images_are_known_by_their_pixels(tmp_path):
    trustdd.ood_set("squares", squares(200))
    trustdd.aux_set("frames", lambda shape: squares(100).expand(-1, shape[0], -1, -1))
    exp = Experiment(outliers="oe", aux="frames", **SMALL | dict(ood=("squares", "gaussian")))
    run = load_or_run(exp, tmp_path, "cpu", progress=False)
    assert set(run.report.ood_values) == {"squares", "gaussian"}
    assert run.distilled.provenance["aux"].startswith("frames: 40 images")
    assert load_or_run(exp, tmp_path, "cpu", progress=False).folder == run.folder
    trustdd.ood_set("squares", squares(190))
    other = load_or_run(exp, tmp_path, "cpu", progress=False)
    assert other.folder != run.folder
    files = [(r.folder/"distilled.safetensors").read_bytes() for r in (run, other)]
    assert files[0] == files[1]  # only the test set is another
    known = [json.loads((r.folder/"images.json").read_text()) for r in (run, other)]
    assert known[0]["aux"] == known[1]["aux"] and known[0]["ood"] != known[1]["ood"]


def test_outliers_that_are_tested_on_are_refused(tmp_path):
    trustdd.aux_set("digits_again", lambda shape: trustdd.load_dataset("digits").images)
    exp = Experiment(outliers="oe", aux="digits_again", **SMALL)
    with pytest.raises(UserError, match="shares .* images with 'digits'"):
        load_or_run(exp, tmp_path, "cpu", progress=False)


def test_a_folder_of_images_gets_a_name(tmp_path):
    (tmp_path/"test"/"drawn").mkdir(parents=True)
    for i, x in enumerate(squares(200)[:5, 0]): Image.fromarray(x.numpy()).save(tmp_path/f"test/drawn/{i}.png")
    trustdd.ood_set("drawings", tmp_path)
    assert torch.equal(trustdd.load_ood("drawings", (1, 8, 8)), squares(200)[:5])


# --- scores

@pytest.fixture
def scores():
    "What a test registers is gone after it."
    with patch.dict(SCORES), patch.dict(FITTED): yield


@pytest.mark.parametrize("name", ["auroc", "fpr95_in", "accuracy", "near", "far", "noise", "mean", "ood", "metric", "std"])
def test_a_score_is_not_called_like_a_column(scores, name):
    with pytest.raises(UserError, match=f"score = '{name}' is taken"): trustdd.score(name)(lambda logits: logits.amax(1))
    assert name not in SCORES


@pytest.mark.parametrize("name", ["in", "near", "far", "mean"])
def test_a_set_is_not_called_like_a_group(tmp_path, name):
    "Its images would stand for the test images, or its rows for those of a group."
    (tmp_path/name).mkdir()
    for i in range(3): Image.fromarray(squares(200)[i, 0].numpy() + i).save(tmp_path/name/f"{i}.png")
    digits, images = trustdd.load_dataset("digits"), torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    for asked in ((f"{tmp_path}/{name}",), {name: images}):
        with pytest.raises(UserError, match=f"a set called '{name}'"): load_ood_sets(asked, digits)


def test_a_score_is_in_the_report_and_in_comparisons(scores, tmp_path):
    before = load_or_run(Experiment(**SMALL), tmp_path/"before", "cpu", progress=False)
    @trustdd.score("negative_msp")
    def negative(logits): return -logits.softmax(1).amax(1)
    run = load_or_run(Experiment(seed=1, **SMALL), tmp_path, "cpu", progress=False)
    values = run.report.ood_values["skimage-text"]
    assert values["negative_msp"]["auroc"][0] == pytest.approx(100 - values["msp"]["auroc"][0])
    assert "OOD by negative_msp" in run.report.summary("negative_msp")
    assert list(run.report.runs[0]["own"]) == ["score negative_msp"]
    assert "own" not in before.report.runs[0] and "negative_msp" not in str(before.report.ood)
    assert before.scores("negative_msp").n_nets == 1  # from its logits
    with pytest.raises(UserError, match="'negative_msp' is unknown"): before.report.summary("negative_msp")


def test_a_rejector_takes_a_score_and_needs_it_again(scores, tmp_path):
    @trustdd.score("margin")
    def margin(logits): return logits.topk(2).values.diff().flatten().neg()
    digits = trustdd.load_dataset("digits")
    nets = trustdd.train(digits, 1, 0, "cpu", Experiment(**SMALL), progress=False)
    rejector = trustdd.Rejector.fit(nets, digits, score="margin")
    rejector.save(tmp_path/"model.safetensors")
    assert trustdd.Rejector.load(tmp_path/"model.safetensors").score == "margin"
    where = dict(__name__="__main__")  # as a cell that is executed again
    exec("def margin(logits): return 100 + logits.topk(2).values.diff().flatten().neg()", where)
    SCORES.pop("margin")
    trustdd.score("margin")(where["margin"])
    with pytest.raises(UserError, match="another score 'margin'"): trustdd.Rejector.load(tmp_path/"model.safetensors")
    SCORES.pop("margin")
    with pytest.raises(UserError, match="margin"): trustdd.Rejector.load(tmp_path/"model.safetensors")
