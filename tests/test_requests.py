"""What is asked is what is done: numbers, places and names mean the same at every door, and a request that cannot be
met is refused in one line before anything is made."""
import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from test_bad_input import FIELDS, notebook, SMALL
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.core.storage import data_root, project_root, runs_root
from trustdd.data.catalog import load_dataset
from trustdd.data.suites import is_kin, ood_group
from trustdd.evaluation.ood_sets import load_ood_sets
from trustdd.evaluation.report import Report
from trustdd.networks.compute import compile_problem
from trustdd.reproduction.execution import execute
from trustdd.reproduction.atlas import make_items
from trustdd.reproduction.cli import main
from trustdd.reproduction.items import PaperItem
from trustdd.reproduction.plan import plan
from trustdd.reproduction.runs import load_or_run

PAPER = ROOT/"nbs"/"paper"


# --- numbers of the wrong kind, as parameters of notebooks

@pytest.mark.parametrize("field, value, said", [
    ("seeds", 0.5, "0.5"), ("seeds", "0,0", "twice"), ("ipc", 1.9, "1.9"), ("ipc", 0, "1 or more"),
    ("ipc", "1,1", "twice"), ("ipc", True, "True"), ("seeds", -1, "0 or more"), ("seeds", "1,,2", "1,,2"),
    ("seeds", [0, 0.5], "0,0.5")])
def test_numbers_of_the_wrong_kind_are_refused(field, value, said):
    with pytest.raises(UserError) as e: PaperItem("tab01", "smoke", **{field: value})
    assert said in str(e.value) and "\n" not in str(e.value)


def test_no_notebook_takes_another_number_for_a_wrong_one():
    "0 images per class were the preset's, in those notebooks that have a preset of their own."
    for value, said in ((0, "ipc = 0 must be"), (1.9, "1.9"), ("0,0", "twice")):
        for name, item in plan("quick", parameters=dict(ipc=value), folder=PAPER)["items"].items():
            assert said in item["problem"], (name, value, item)


def test_weights_and_outliers_per_slot_likewise():
    def problem(item, **given): return plan("quick", [item], parameters=given, folder=PAPER)["items"][item]["problem"]
    for item in ("fig11", "tab11"):
        assert "lams = 0 names no weight above 0" in problem(item, lams=0)
        assert not problem(item, lams=0.5) # as papermill hands it over
    assert "opcs = 0 names no number above 0" in problem("tab12", opcs=0) and "'0.5'" in problem("tab12", opcs=0.5)


# --- places

def test_the_settings_of_another_project_are_not_this_one(project, monkeypatch):
    "A `settings.ini` is a common name: only the one of this project says where its folders are."
    inner = project/"other"/"notes"
    inner.mkdir(parents=True)
    for text in ("[DEFAULT]\nlib_name = other\n", "[tool]\nname = trustdd\n", "", "[DEFAULT]\nlib_name = trustdd-fork\n"):
        (inner.parent/"settings.ini").write_text(text)
        monkeypatch.chdir(inner)
        assert project_root() == project and runs_root() == project/"runs"
    (inner.parent/"settings.ini").write_bytes(b"\xff[DEFAULT]\r\nlib_name=trustdd\r\n") # whatever wrote it
    assert project_root() == inner.parent


def test_no_notebooks_of_another_project_are_used(refused, project, monkeypatch):
    "A folder nbs/paper beside another project's settings was made figures of."
    other = project/"other"
    (other/"nbs"/"paper").mkdir(parents=True)
    (other/"nbs"/"paper"/"fig01_theirs.ipynb").write_text("{}")
    (other/"settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    monkeypatch.chdir(other)
    assert "no notebooks" in refused("paper", "--preset", "smoke")


def pictures(folder, seed, classes=("cat", "dog"), n=8):
    "A folder of class folders with random pictures."
    for i in range(len(classes) * n):
        path = folder/classes[i % len(classes)]/f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed * 1000 + i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


OWN = dict(preset="smoke", ipc=1, iterations=1, epochs=1, n_nets=1)


def test_sets_named_from_one_folder_are_found_from_another(project, monkeypatch, capfd):
    "`ood` and `aux` were kept as typed; `trustdd evaluate` looked for them where it was called."
    for name, seed in (("mine", 1), ("odd", 2), ("extra", 3)):
        pictures(project/"here"/name, seed, dict(mine=("cat", "dog"), odd=("cup", "pan"), extra=("jug", "bowl"))[name])
    (project/"elsewhere").mkdir()
    monkeypatch.chdir(project/"here")
    words = [w for k, v in OWN.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    asked = "distill --dataset ./mine --outliers oe --aux extra --ood ./odd,gaussian --out set.safetensors".split()
    assert main([*asked, *words]) == 0
    monkeypatch.chdir(project/"elsewhere")
    assert main(["evaluate", "../here/set.safetensors", "--out", "result"]) == 0
    assert set(Report.load(project/"elsewhere"/"result").ood["ood"]) == {"odd", "gaussian"} # as a reader calls them
    capfd.readouterr()


def test_a_folder_is_never_called_like_another_set(project):
    "Short names are for readers; one that is the name of a known set would put it into the wrong group."
    for i, name in enumerate(("noise", "MNIST", "odd", "twice/odd")): pictures(project/name, i, ("cup", "pan"))
    data = load_dataset(str(pictures(project/"mine", 9)))
    images, _ = load_ood_sets(("./noise", "./MNIST", "./odd"), data)
    noise, mnist, odd = images
    assert odd == "odd" and noise.startswith("noise-") and mnist.startswith("MNIST-")
    assert ood_group(noise, data.name) == ood_group(mnist, "digits") == "far"
    with pytest.raises(UserError, match="two sets called odd"): load_ood_sets(("./odd", "./twice/odd"), data)
    assert is_kin("odd", "oe", str(project/"odd")) and not is_kin("noise", "oe", str(project/"noise"))


def test_home_and_relative_places(project, monkeypatch, capfd):
    "`~` after an equals sign is left to the program; a relative place means the same in a notebook's folder."
    monkeypatch.setenv("HOME", str(project/"home"))
    home = project/"home"
    assert main(["run", "--runs=~/store", *SMALL]) == 0 and (home/"store"/"smoke").is_dir()
    assert main(["distill", "--runs", "~/store", "--out=~/set.safetensors", *SMALL]) == 0 and (home/"set.safetensors").exists()
    monkeypatch.setenv("TRUSTDD_RUNS", "~/store")
    assert runs_root() == home/"store"
    monkeypatch.setenv("TRUSTDD_RUNS", "store")
    monkeypatch.setenv("TRUSTDD_DATA", "pictures/../data")
    assert runs_root() == project/"store" and data_root() == project/"data"
    assert not (project/"~").exists()
    capfd.readouterr()


def test_relative_places_inside_notebooks(project, monkeypatch):
    "A notebook runs in the project's folder: what was relative to the caller's meant another place there."
    here = project/"below"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TRUSTDD_RUNS", "myruns")
    monkeypatch.setenv("TRUSTDD_DATA", "mydata")
    folder = project/"nbs"/"paper"
    folder.mkdir(parents=True)
    notebook(folder/"fig01_where.ipynb", """import json
from pathlib import Path
from trustdd.core.experiment import Experiment
from trustdd.core.storage import data_root, runs_root
Path(out, "{name}.json").write_text(json.dumps(dict(verdict=f"{runs_root()} {data_root()}", preset=preset)))""")
    done = make_items("smoke", out=here/"figures", progress=False)
    assert done == {"fig01": "made"}
    assert json.loads((here/"figures"/"fig01.json").read_text())["verdict"] == f"{here}/myruns {here}/mydata"


def test_a_name_with_a_slash_is_one_item(project):
    "`mine/` was another data set than `mine`, and its description could not be made short."
    pictures(project/"mine", 1)
    for name in ("mine", "./mine", "mine/", str(project/"mine")):
        item = PaperItem("fig01", "smoke", dataset=name)
        assert item.dataset == str(project/"mine") == item.experiments()[0].dataset


# --- a compiler that cannot compile

BROKEN = {"a compiler without Python's headers": "x.cpp:1:10: fatal error: Python.h: No such file or directory",
          "a full disk": "/tmp/x.s: error: No space left on device"}


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN)
def test_a_compiler_that_cannot_compile_costs_time_only(project, monkeypatch, capfd, said):
    "A run ended with screens of a compiler's flags; it goes on eagerly, with the same numbers as without a compiler."
    folder = project/"bin"
    folder.mkdir()
    for name in ("g++", "c++", "clang++"):
        (folder/name).write_text(f"#!/bin/sh\ncase $1 in --version) echo g++ 14; exit 0;; esac\necho '{said}' >&2\nexit 1\n")
        (folder/name).chmod(0o755)
    exp = Experiment("digits", **FIELDS)
    eager = load_or_run(exp, "eager", "cpu", progress=False)
    assert "passes" not in eager.distilled.provenance # short work
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(project/"cache"))
    monkeypatch.setattr("trustdd.networks.compute._COMPILE_FROM", 1)
    compile_problem.cache_clear()
    capfd.readouterr()
    try: run = load_or_run(exp, "tried", "cpu", progress=False)
    finally: compile_problem.cache_clear()
    why = said.partition("error: ")[2]
    lines = [l for l in capfd.readouterr().err.splitlines() if "compiled" in l]
    assert lines and set(lines) == {f"networks cannot be compiled here ({why}); they run eagerly, which is slower"}
    assert run.distilled.provenance["passes"] == run.report.runs[0]["passes"] == f"eager ({why})"
    assert torch.equal(run.distilled.images, eager.distilled.images) and run.report.accuracy == eager.report.accuracy


def test_a_cache_that_cannot_be_written(project, monkeypatch):
    "Nothing is compiled where it cannot be kept."
    compile_problem.cache_clear()
    (project/"file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(project/"file"/"cache"))
    try: assert "file" in compile_problem("cpu")
    finally: compile_problem.cache_clear()


# --- the usual sets, and classes that are in both

@pytest.mark.parametrize("classes, shared", [(("cat", "pan"), "cat"), (("Dogs", "cup"), "dog")])
def test_a_set_that_has_a_class_of_the_data_is_no_ood_set(project, classes, shared):
    "Cats of another folder counted as what a network that knows cats has to reject."
    data = load_dataset(str(pictures(project/"mine", 1)))
    pictures(project/"odd", 2, classes)
    with pytest.raises(UserError, match=f"'odd' has classes of the data .{shared}."): load_ood_sets(("./odd",), data)
    with pytest.raises(UserError, match="'odd' has classes"): # likewise of a set that the program knows
        load_ood_sets(("./odd",), dataclasses.replace(data, name="cifar10"))


def test_usual_sets_are_named_and_leave_out_the_users_classes(project):
    data = load_dataset(str(pictures(project/"mine", 1, ("face", "dog"))))
    images, _ = load_ood_sets((), data)
    assert "skimage-faces" not in images and "skimage-text" in images
    with pytest.raises(UserError, match="'skimage-faces' has classes of the data .face."): load_ood_sets(("skimage-faces",), data)
    numbered = load_dataset(str(pictures(project/"numbered", 3, ("0", "1")))) # numbers are no names
    assert "skimage-faces" in load_ood_sets((), numbered)[0]


def test_a_report_says_which_sets_were_taken(project, capfd):
    pictures(project/"mine", 1)
    run = load_or_run(Experiment("./mine", outliers="oe", **FIELDS), device="cpu", progress=False)
    said = run.report.summary().splitlines()[-1]
    assert said.startswith("no OOD sets were named; using skimage-textures, skimage-faces") and "skimage-photos" in said
    known = load_or_run(Experiment("digits", **FIELDS), device="cpu", progress=False)
    assert "were named" not in known.report.summary()


def test_large_images_are_announced_with_their_price(project, capfd):
    "Photographs of 227 pixels were distilled at that size for minutes, without a word."
    for i in range(8):
        path = project/"photos"/("cat", "dog")[i % 2]/f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    for name, lines in (("./photos", 1), ("./photos", 0), ("./photos@16", 0)): # the second time it is stored
        assert main(["distill", "--dataset", name, *SMALL]) == 0
        said = [l for l in capfd.readouterr().err.splitlines() if "iterations on images of" in l]
        assert len(said) == lines
        if said: assert said[0].startswith("photos: 1 iterations on images of 80x80: about ") and "photos@64: about" in said[0]


# --- figures of one's own data

def test_a_figure_of_ones_own_data(project, monkeypatch, capfd):
    "Only papermill by hand could do it, and not with OOD sets of one's own."
    for name, seed in (("mine", 1), ("odd", 2), ("extra", 3)):
        pictures(project/"here"/name, seed, dict(mine=("cat", "dog"), odd=("cup", "pan"), extra=("jug", "bowl"))[name], n=12)
    shutil.copytree(PAPER, project/"nbs"/"paper")
    monkeypatch.chdir(project/"here")
    words = "--preset smoke --dataset mine --ood odd,uniform --aux extra --iterations 1 --epochs 1 --n-nets 1 --ipc 1".split()
    assert main(["paper", "--only", "tab01", *words]) == 0
    assert not (project/"figures"/"smoke").exists() # where those of the project are
    made = project/"figures"/"own"/"smoke"
    about = json.loads((made/"tab01.json").read_text())
    assert about["dataset"] == "mine" and set(about["ood_sets"]) == {"odd", "uniform"}
    texts = [p.read_text() for p in (*made.glob("tab01.*"), made/"notebooks"/"tab01.ipynb")]
    assert not any(str(project) in text for text in texts)
    exps = [json.loads(p.read_text()) for p in (project/"runs").rglob("config.json")]
    assert {e["iterations"] for e in exps} == {1} and {e["aux"] for e in exps} == {"", str(project/"here"/"extra")}
    capfd.readouterr()


@pytest.mark.parametrize("fields", [dict(), dict(ipc=1), dict(dataset="mine")], ids=str)
def test_a_notebook_by_hand_leaves_the_committed_figures_alone(project, fields):
    pictures(project/"mine", 1)
    assert PaperItem("fig02", "quick", **fields).out == project/"figures"/"own"/"quick"


def test_a_field_that_an_item_compares_is_not_set_for_it(project):
    for item, field in (("fig11", "lam"), ("tab12", "outliers_per_slot")):
        asked = dict(settings={field: 1})
        assert f"{item} chooses {field} itself" in plan("quick", [item], parameters=asked, folder=PAPER)["items"][item]["problem"]


def test_every_item_takes_other_fields(project):
    made = plan("quick", parameters=dict(settings=dict(iterations=3, weight_decay=0.1)), folder=PAPER)
    assert not [i for i in made["items"].values() if i["problem"]]
    assert all("--weight-decay 0.1" in " ".join(run["words"]) for run in made["runs"].values())
    with pytest.raises(UserError, match="colour"): PaperItem("fig02", settings=dict(colour="red"))


# --- notebooks

def flagged(folder, flags=("#| data", "#| gpu")):
    "The chapters with cells that the tests leave out, and that Run All does not."
    sources = {p: json.loads(p.read_text(encoding="utf-8"))["cells"] for p in sorted(folder.glob("*.ipynb"))}
    return [p for p, cells in sources.items() if any("".join(c["source"]).startswith(flags) for c in cells)]


@pytest.mark.parametrize("chapter", flagged(ROOT/"nbs"/"data"), ids=lambda p: p.stem)
def test_run_all_where_there_is_neither_a_data_set_nor_a_gpu(project, monkeypatch, chapter):
    "The chapter on data stopped without CIFAR-10, the one on augmentation without a GPU."
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    for name, value in dict(CUDA_VISIBLE_DEVICES="", **nowhere).items(): monkeypatch.setenv(name, value)
    execute(chapter, project/chapter.name, {})
    cells = json.loads((project/chapter.name).read_text(encoding="utf-8"))["cells"]
    assert all(c["execution_count"] for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip())
    assert not (project/"data"/"cifar10").exists()


def test_notebooks_run_with_this_interpreter(project, monkeypatch):
    "A kernel called python3 elsewhere on JUPYTER_PATH ran them, with whatever was installed there."
    spec = project/"jupyter"/"kernels"/"python3"/"kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=["/bin/false", "{connection_file}"], display_name="elsewhere", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(project/"jupyter"))
    folder = project/"nbs"/"paper"
    folder.mkdir(parents=True)
    notebook(folder/"fig01_who.ipynb", """import json, os, sys
from pathlib import Path
Path(out, "{name}.json").write_text(json.dumps(dict(verdict=sys.executable, preset=preset)))""")
    assert make_items("smoke", progress=False) == {"fig01": "made"}
    assert json.loads((project/"figures"/"smoke"/"fig01.json").read_text())["verdict"] == sys.executable
    assert not [p for p in (project/"figures").rglob("kernel*")] # nothing of it is left
    assert os.environ["JUPYTER_PATH"] == str(project/"jupyter")
