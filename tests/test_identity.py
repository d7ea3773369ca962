"""A stored result is never taken for that of other images: whatever their name, and wherever they lie."""
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.buffers import Buffer, buffer_name, make_buffer
from trustdd.distillation.distillation import distill
from trustdd.evaluation.evaluation import evaluate
from trustdd.networks.training import train
from trustdd.reproduction.comparison import compare
from trustdd.reproduction.run_store import run_folder, stored_images
from trustdd.reproduction.runs import load_or_run

SMALL = dict(preset="smoke", method="random", ipc=1, n_test=0, n_nets=1, epochs=2, width=4, depth=1)


def write_images(folder, key, n=6, classes=("cat", "dog"), parts=("train", "test")):
    "Small pictures of noise; `key` decides which."
    rng = np.random.default_rng(key)
    for part in parts:
        for c in classes:
            (folder/part/c).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(folder/part/c/f"{i}.png")


def run(tmp_path, **fields):
    exp = Experiment(**SMALL | fields)
    return load_or_run(exp, tmp_path/"runs", "cpu", tmp_path/"data", progress=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder to be in, with a data folder of its own."
    (tmp_path/"data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_experts_of_other_images_in_another_root(here):
    "Their files said nothing of images that lie in a folder given as `root`."
    exp = Experiment(dataset="mnist", method="mtt", preset="smoke", ipc=1, experts=1, train_epochs=2, max_start_epoch=1, expert_epochs=1, zca=False)
    for place, key in (("a", 1), ("b", 2)): write_images(here/place/"mnist", key)
    made = make_buffer(exp, here/"experts", root=here/"a", progress=False)
    assert made.snapshot(0, 1).equal(Buffer(here/"experts", exp, here/"a").snapshot(0, 1))
    with pytest.raises(UserError, match="another experiment"): make_buffer(exp, here/"experts", root=here/"b", progress=False)


def test_two_folders_of_one_name(here, monkeypatch):
    made = []
    for place, key in (("a", 1), ("b", 2)):
        write_images(here/place/"flowers", key)
        monkeypatch.chdir(here/place)
        made.append(run(here, dataset="flowers", ood=("gaussian",)))
    assert made[0].folder != made[1].folder
    assert not (made[0].distilled.images == made[1].distilled.images).all()
    monkeypatch.chdir(here/"a")
    assert run(here, dataset="flowers", ood=("gaussian",)).folder == made[0].folder


def test_images_replaced_under_the_same_names_and_times(here):
    write_images(here/"data"/"pets", 1)
    first = run(here, dataset="pets", ood=("gaussian",))
    times = {p: p.stat().st_mtime_ns for p in (here/"data"/"pets").rglob("*.png")}
    write_images(here/"data"/"pets", 2)
    for p, t in times.items(): os.utime(p, ns=(t, t + 1)) # sizes differ by chance alone
    second = run(here, dataset="pets", ood=("gaussian",))
    assert second.folder != first.folder
    write_images(here/"data"/"pets", 1)
    assert run(here, dataset="pets", ood=("gaussian",)).folder == first.folder


def test_a_comparison_measures_again_what_has_changed(here):
    "Its numbers were kept under the pixels of the set alone; step size, soft labels and test images make them others."
    write_images(here/"data"/"pets", 1, n=20)
    exp = Experiment(dataset="pets", ood=("skimage-textures", "gaussian"), **SMALL | dict(epochs=9, strategy="none"))
    syn = distill(exp, root=here/"data", device="cpu", progress=False)
    def rows(out="page"): return compare(["a.safetensors"], out, 1, device="cpu", root=here/"data", references=()).rows
    def other_images(): write_images(here/"data"/"pets", 3, n=20, parts=("test",))
    def other_step(): replace(syn, lr=0.3).save("a.safetensors")
    def other_labels(): replace(syn, lr=0.3, soft=torch.tensor([[0.2, 0.8], [0.9, 0.1]])).save("a.safetensors")
    syn.save("a.safetensors")
    before = rows()
    assert rows() == before
    for k, change in enumerate((other_images, other_step, other_labels)):
        change()
        after = rows()
        assert after != before and after == rows(f"new{k}"), change
        before = after


def test_images_replaced_with_the_same_size_and_date(here):
    "Names, sizes and dates were all that was compared; pictures without compression have all of them in common, as after unpacking another version."
    for part in ("train", "test"):
        for i, c in enumerate(("cat", "dog")):
            (here/"data"/"pets"/part/c).mkdir(parents=True)
            for k in range(6): Image.fromarray(np.random.default_rng([i, k, len(part)]).integers(256, size=(8, 8), dtype=np.uint8)).save(here/"data"/"pets"/part/c/f"{k}.bmp")
    first = run(here, dataset="pets", ood=("gaussian",))
    file = here/"data"/"pets"/"test"/"cat"/"0.bmp"
    before, whole = file.stat(), file.read_bytes()
    file.write_bytes(whole[:-64] + bytes(255 - b for b in whole[-64:]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert run(here, dataset="pets", ood=("gaussian",)).folder != first.folder
    file.write_bytes(whole)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(here, dataset="pets", ood=("gaussian",)).folder == first.folder


@pytest.mark.parametrize("how", ("touch", "copy", "unpacked again"))
def test_the_same_bytes_are_the_same_run(here, how):
    write_images(here/"data"/"pets", 1)
    first = run(here, dataset="pets", ood=("gaussian",))
    written = (first.folder/"report.json").stat().st_mtime_ns
    if how == "touch":
        for p in (here/"data").rglob("*.png"): os.utime(p, (1, 1))
    elif how == "copy":
        shutil.copytree(here/"data"/"pets", here/"again")
        shutil.rmtree(here/"data"/"pets")
        shutil.copytree(here/"again", here/"data"/"pets")
    else:
        shutil.rmtree(here/"data")
        write_images(here/"data"/"pets", 1)
    again = run(here, dataset="pets", ood=("gaussian",))
    assert again.folder == first.folder and (again.folder/"report.json").stat().st_mtime_ns == written


def test_ood_images_replaced_and_from_another_folder(here, monkeypatch):
    values = []
    for place, key in (("a", 3), ("b", 4), ("a", 5)):
        write_images(here/place/"odd", key)
        monkeypatch.chdir(here/place)
        values.append(run(here, dataset="digits", ood=("odd",)))
    assert len({r.folder for r in values}) == 3
    assert len({json.dumps(stored_images(r.folder)["ood"]) for r in values}) == 3
    assert (values[0].distilled.images == values[2].distilled.images).all()


def test_auxiliary_images_replaced(here):
    write_images(here/"data"/"lawns", 1, n=12)
    first = run(here, dataset="digits", outliers="oe", aux="lawns", ood=("gaussian",))
    write_images(here/"data"/"lawns", 2, n=12)
    second = run(here, dataset="digits", outliers="oe", aux="lawns", ood=("gaussian",))
    assert first.folder != second.folder
    assert not (first.distilled.outliers == second.distilled.outliers).all()


def test_the_whole_set_beside_its_reduced_copy(here):
    write_images(here/"data"/"dtd64", 1)
    first = run(here, dataset="digits", ood=("textures",))
    write_images(here/"data"/"textures", 2)
    assert run(here, dataset="digits", ood=("textures",)).folder != first.folder


def test_experts_of_other_images(here):
    write_images(here/"data"/"pets", 1)
    exp = Experiment(dataset="pets", method="mtt", preset="smoke")
    first = buffer_name(exp, here/"data")
    write_images(here/"data"/"pets", 2)
    assert buffer_name(exp, here/"data") != first
    write_images(here/"data"/"pets", 1)
    assert buffer_name(exp, here/"data") == first


def test_a_distilled_set_is_not_evaluated_on_other_images(here):
    write_images(here/"data"/"pets", 1)
    made = run(here, dataset="pets", ood=("gaussian",))
    syn = DistilledSet.load(made.folder/"distilled.safetensors")
    nets = train(syn, n_nets=1, device="cpu", progress=False)
    evaluate(nets, syn, device="cpu", root=here/"data")
    write_images(here/"data"/"pets", 2)
    with pytest.raises(UserError, match="was made of other images than pets has here"):
        evaluate(nets, syn, device="cpu", root=here/"data")
    evaluate(nets, syn, dataset="pets", device="cpu", root=here/"data") # asked for by name


SAME = {"path": "{data}/mine", "slash": "{data}/mine/", "copy": "twin", "capitals": "MINE", "size": "mine@8"}

@pytest.mark.parametrize("ood", SAME.values(), ids=SAME)
def test_the_data_set_is_no_ood_set_by_another_name(here, ood):
    write_images(here/"data"/"mine", 1)
    for twin in ("twin", "MINE"): shutil.copytree(here/"data"/"mine", here/"data"/twin)
    with pytest.raises(UserError, match="those of 'mine', the in-distribution data set"):
        run(here, dataset="mine", ood=(ood.format(data=here/"data"),))


def test_digits_are_digits_in_capitals_and_in_another_size(here):
    for dataset, ood in (("digits", "Digits"), ("digits@16", "digits")):
        with pytest.raises(UserError, match="the in-distribution data set"):
            run(here, dataset=dataset, ood=(ood,))


def test_test_images_that_are_training_images_are_said(here):
    write_images(here/"data"/"pets", 1)
    shutil.rmtree(here/"data"/"pets"/"test")
    shutil.copytree(here/"data"/"pets"/"train", here/"data"/"pets"/"test")
    with pytest.warns(UserWarning, match="12 of the test images of pets are training images too"): run(here, dataset="pets", ood=("gaussian",))


def test_one_ood_set_counts_once(here):
    with pytest.raises(UserError, match="'gaussian', which is tested already"):
        run(here, dataset="digits", ood=("gaussian", "noise"))


def test_auxiliary_images_are_not_tested_on(here):
    write_images(here/"data"/"flat", 1, parts=("",), n=30)
    with pytest.raises(UserError, match="aux = 'flat' shares 60 images with 'flat'"):
        run(here, dataset="digits", outliers="oe", aux="flat", ood=("flat",))
    write_images(here/"data"/"parts", 1, n=30)
    run(here, dataset="digits", outliers="oe", aux="parts", ood=("parts",)) # train and test differ


def test_auxiliary_images_are_not_those_to_recognise(here):
    write_images(here/"data"/"pets", 1, n=12)
    shutil.copytree(here/"data"/"pets", here/"data"/"beasts")
    with pytest.raises(UserError, match="aux = 'beasts' shares 24 images with 'pets'"):
        run(here, dataset="pets", outliers="oe", aux="beasts", ood=("gaussian",))


def test_a_few_images_in_common_are_counted(here):
    write_images(here/"data"/"pets", 1)
    write_images(here/"data"/"odd", 2, classes=("cup", "pan"))
    shutil.copy(here/"data"/"pets"/"test"/"cat"/"0.png", here/"data"/"odd"/"test"/"cup"/"9.png")
    said = run(here, dataset="pets", ood=("odd",)).report.sources["ood"]["odd"]["source"]
    assert said.endswith("; 1 of them is also in pets")


def test_only_ood_images_changed_so_nothing_is_distilled_anew(here):
    write_images(here/"data"/"odd", 1)
    exp = dict(dataset="digits", method="dsa", outliers="poe", iterations=1, ood=("odd",))
    first = run(here, **exp)
    write_images(here/"data"/"odd", 2)
    second = run(here, **exp)
    assert first.folder != second.folder
    assert (first.folder/"distilled.safetensors").read_bytes() == (second.folder/"distilled.safetensors").read_bytes()


def test_a_run_stored_without_its_images_is_refused_with_what_to_do(here):
    made = run(here, dataset="digits", ood=("gaussian",))
    (made.folder/"images.json").unlink()
    with pytest.raises(UserError, match="record_images.py"): run_folder(made.exp, here/"runs")


def test_images_replaced_while_a_run_is_computed(here, monkeypatch):
    "OOD images are read after training. The run stored a result of the new ones under the name of the old."
    import trustdd.reproduction.runs as runs
    write_images(here/"data"/"pets", 1)
    write_images(here/"data"/"odd", 2, classes=("x",), parts=("test",))
    asked, learn = dict(dataset="pets", ood=("odd", "gaussian")), runs.train
    def slow(*args, **kw):
        write_images(here/"data"/"odd", 3, classes=("x",), parts=("test",))
        return learn(*args, **kw)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", slow)
        with pytest.raises(UserError, match="odd: not the images that .* was begun with; the same command"): run(here, **asked)
    assert not list((here/"runs").rglob("report.json"))
    new = run(here, **asked)
    write_images(here/"data"/"odd", 2, classes=("x",), parts=("test",))
    old = run(here, **asked)
    assert old.folder != new.folder and "-images-" in new.folder.name
    assert stored_images(old.folder)["ood"]["odd"] != stored_images(new.folder)["ood"]["odd"]
    assert (old.distilled.images == new.distilled.images).all() # distilled once


def test_images_replaced_while_another_process_has_the_run(here, monkeypatch):
    "Between the choice of the folder and the lock there may be hours. The set of the old images became one of the new."
    import trustdd.reproduction.runs as runs
    from trustdd.reproduction.runs import load_or_distill
    write_images(here/"data"/"pets", 1)
    exp = Experiment(**SMALL | dict(dataset="pets", ood=("gaussian",)))
    def distil(): return load_or_distill(exp, here/"runs", "cpu", here/"data", progress=False)
    first, begin = distil(), runs.begin
    (first.folder/"distilled.safetensors").unlink()
    def late(*args):
        write_images(here/"data"/"pets", 2)
        return begin(*args)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "begin", late)
        with pytest.raises(UserError, match="dataset: not the images"): distil()
    assert stored_images(first.folder) != stored_images(distil().folder)
    write_images(here/"data"/"pets", 1)
    assert distil().folder == first.folder


def test_an_unfinished_run_is_not_taken_as_stored(here, monkeypatch):
    "With --as-stored, the set of other images was tested on those that are here."
    from trustdd.reproduction.runs import load_or_distill
    write_images(here/"data"/"pets", 1)
    exp = Experiment(**SMALL | dict(dataset="pets", ood=("gaussian",)))
    first = load_or_distill(exp, here/"runs", "cpu", here/"data", progress=False)
    write_images(here/"data"/"pets", 2)
    monkeypatch.setenv("TRUSTDD_AS_STORED", "1")
    second = run(here, dataset="pets", ood=("gaussian",))
    assert second.folder != first.folder and not (first.folder/"report.json").exists()
    write_images(here/"data"/"pets", 3)
    assert run(here, dataset="pets", ood=("gaussian",)).folder == second.folder # finished: as stored


def test_other_networks_are_not_tested_on_other_images(here):
    "Their report lies in the folder of the run, whose images it is said to be of."
    from trustdd.reproduction.cross_architecture import transfer
    write_images(here/"data"/"pets", 1)
    made = run(here, dataset="pets", ood=("gaussian",))
    write_images(here/"data"/"pets", 2)
    with pytest.raises(UserError, match="dataset: not the images"): transfer(made, "cpu", here/"data", progress=False, model="mlp")
    assert not list(made.folder.glob("networks/*/report.json"))
    write_images(here/"data"/"pets", 1)
    assert transfer(made, "cpu", here/"data", progress=False, model="mlp").report.accuracy


def test_images_that_are_not_here_are_taken_on_the_word_of_the_run(here):
    write_images(here/"data"/"textures", 1)
    made = run(here, dataset="digits", ood=("textures",))
    shutil.rmtree(here/"data"/"textures")
    assert run_folder(replace(made.exp), here/"runs", here/"data") == made.folder


def test_a_warning_is_one_line_told_once_and_again_by_a_finished_run(here, capfd, monkeypatch):
    "It was Python's two lines, twice; and a finished run, which loads no images, said nothing."
    from trustdd.reproduction.cli import main
    monkeypatch.setenv("TRUSTDD_DATA", str(here/"data"))
    write_images(here/"data"/"pets", 1, parts=("train",))
    shutil.copytree(here/"data"/"pets"/"train", here/"data"/"pets"/"test")
    words = [w for k, v in (SMALL | dict(dataset="pets", ood="gaussian")).items() for w in (f"--{k.replace('_', '-')}", str(v))]
    line = ("warning: 12 of the test images of pets are training images too: how well they are classified says "
            "little about new images")
    def said(*asked):
        assert main([*asked, "--device", "cpu"]) == 0
        out, err = capfd.readouterr()
        assert "UserWarning" not in err
        return out.splitlines().count(line), err.replace("\r", "\n").splitlines().count(line)
    assert said("run", *words, "--runs", "runs") == (0, 1)
    assert said("run", *words, "--runs", "runs") == (0, 1) # as it was stored
    assert said("distill", *words, "--runs", "runs", "--out", "set.safetensors") == (0, 1)
    assert said("evaluate", "set.safetensors", "--out", "result") == (1, 1) # in the table, and before the work
    write_images(here/"data"/"pets", 2, parts=("test",))
    assert said("run", *words, "--runs", "runs") == (0, 0)
