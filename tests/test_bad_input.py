"A wrong request gets one line that says what was wrong, exit status 2, and leaves no file behind; a right one of the user's own works."
import errno, json, os, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import nbformat
import pytest
import torch
from PIL import Image
from safetensors.torch import save as tensor_bytes

from conftest import content, odd_json, one_thread
from trustdd.reproduction.cli import main
from trustdd.reproduction.run_store import write_identity
from trustdd.core.experiment import Experiment, run_name, to_dict
from trustdd.core.checks import UserError
from trustdd.core.storage import read_safetensors, write_safetensors
from trustdd.data.catalog import load_dataset
from trustdd.data.dataset import from_tensors
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill
from trustdd.reproduction.atlas import make_items
from trustdd.evaluation.report import Report
from trustdd.reproduction.runs import load_or_run

SMALL = "--preset smoke --ipc 1 --iterations 1 --n-nets 1 --epochs 1 --device cpu".split()
FIELDS = dict(preset="smoke", ipc=1, iterations=1, n_nets=1, epochs=1)
pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture(scope="module")
def finished():
    "A distilled set of the digits."
    with one_thread(): yield distill(Experiment(dataset="digits", outliers="poe", **FIELDS), device="cpu", progress=False)


def picture(path, size=(16, 16), mode="RGB", seed=0):
    "Write a random picture."
    made = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    (made if mode == "RGB" else made.convert(mode)).save(path)


def tree(folder, classes=("cat", "dog"), n=12, size=(16, 16)):
    "A folder of class folders, as a user has one."
    for i, c in enumerate(classes):
        for j in range(n): picture(folder/c/f"{j:02}.png", size, seed=100 * i + j)
    return folder


# --- fields, names, numbers

@pytest.mark.parametrize("words, said", [
    ("distill --dataset nosuch", "nosuch digits cifar10"),
    ("distill --dataset ./nosuch", "nosuch exist"),
    ("distill --dataset imagewoof", "imagewoof by hand"),
    ("distill --dataset digits@0", "size 0"),
    ("distill --dataset textures", "textures train"),
    ("distill --method dsaa", "dsaa dc dsa random full"),
    ("distill --method full", "full dsa"),
    ("distill --method dc --strategy flip", "flip dsa"),
    ("distill --outliers ours", "ours none oe poe"),
    ("distill --outliers oe --aux nosuch", "nosuch"),
    ("distill --outliers poe --corruptions jigsaw,blur", "blur invert"),
    ("distill --preset fast", "fast smoke quick cifar paper"),
    ("distill --colour red", "no flag --colour --help"), ("distill --datset digits", "--datset mean --dataset?"),
    ("distill digits", "digits flag --seed"), ("distill --ipc", "--ipc value"),
    ("distill --device tpu", "tpu cpu cuda"),
    ("distill --device cuda:99", "cuda:99 cpu"),
    ("distill --device cuda:one", "cuda:one cpu"),
    (os.fsdecode(b"distill --dataset ./b\xe9b\xe9"), "dataset udce9 UTF-8 PYTHONUTF8=1"),
    ("distill --ipc 0", "ipc 0 1 or more"),
    ("distill --ipc -3", "ipc -3 1 or more"),
    ("distill --ipc ten", "--ipc ten whole number"),
    ("distill --ipc 1.5", "--ipc 1.5 whole number"),
    ("distill --ipc 101", "ipc 101 100 '0' noise"),
    ("distill --ipc 101 --method random", "ipc 101 100 noise"),
    ("distill --lr-img nan", "lr_img nan finite"),
    ("distill --lam -1", "lam -1 0 or more"),
    ("distill --align-corners maybe", "--align-corners maybe true or false"),
    ("distill --seed -1", "seed -1"),
    ("distill --ood nosuch", "nosuch"),
    ("distil", "distil distill evaluate"),
    ("", "COMMAND"),
    ("evaluate", "file"),
    ("evaluate nowhere.safetensors", "nowhere.safetensors not there"),
    ("list --date", "--date"),
    ("paper --preset fast", "fast smoke quick"),
    ("paper --workers 0", "--workers 0 1 or more"),
], ids=lambda v: v or "nothing")
def test_wrong_words(refused, words, said):
    small = "--preset smoke".split() + "--iterations 1".split() * ("random" not in words and "full" not in words)
    line = refused(*words.split(), *small * ("distill" in words and "--preset" not in words))
    for part in said.split(): assert part in line


@pytest.mark.parametrize("words, said", [
    ("--device tpu", "tpu cpu cuda"),
    ("--n-nets 0", "n_nets 0"),
    ("--dataset nosuch", "nosuch"),
    ("--ood gaussian,nosuch", "nosuch gaussian"),
    ("--ood digits", "digits in-distribution"),
    ("--select best", "best last best_on_test"),
    ("--seed one", "--seed one"),
    ("--seed -1", "seed -1 0 or more"),
    ("--fpr95 closest", "closest first nearest"),
    ("--aupr smooth", "smooth step trapezoid"),
], ids=str)
def test_wrong_words_to_evaluate(refused, finished, project, words, said):
    finished.save(project/"set.safetensors")
    line = refused("evaluate", "set.safetensors", "--out", "report", *words.split())
    for part in said.split(): assert part in line


def test_a_dry_run_refuses_what_a_run_would(refused, project):
    small = "--dataset digits --preset smoke --ipc 1 --iterations 1 --device cpu --dry-run".split()
    assert "nosuch" in refused("run", *small, "--ood", "nosuch")
    assert "in-distribution" in refused("run", *small, "--ood", "digits")


def test_a_data_set_that_does_not_fit_the_distilled_set(refused, finished, project):
    finished.save(project/"set.safetensors")
    assert "shape" in refused("evaluate", "set.safetensors", "--dataset", "digits@16")
    mine = tree(project/"mine", size=(8, 8))
    load_dataset(str(mine)) # decoded images are kept
    line = refused("evaluate", "set.safetensors", "--dataset", mine)
    assert "shape" in line or "classes" in line


def test_debug_shows_the_traceback():
    with pytest.raises(UserError, match="dsaa"): main(["distill", "--method", "dsaa", "--debug"])


@pytest.mark.parametrize("ood, said", [(("nosuch",), "nosuch"), (("gaussian", "digits"), "in-distribution")], ids=str)
def test_ood_sets_are_looked_at_before_anything_is_computed(project, ood, said):
    with pytest.raises(UserError, match=said): load_or_run(Experiment(dataset="digits", ood=ood, **FIELDS), device="cpu", progress=False)
    assert list(content(project)) == ["settings.ini"]


def test_unknown_field_in_python():
    from trustdd.core.experiment import Experiment
    with pytest.raises(UserError, match="colour.*dataset, method"): Experiment(colour="red")


# --- the user's own pictures

def test_empty_folder(refused, project):
    (project/"mine").mkdir()
    assert "no image in" in refused("distill", "--dataset", "./mine", *SMALL)
    (project/"mine"/"cat").mkdir()
    (project/"mine"/"cat"/"notes.txt").write_text("none yet")
    assert "no image in" in refused("distill", "--dataset", "./mine", *SMALL)


def test_one_class(refused, project):
    line = refused("distill", "--dataset", tree(project/"mine", ["cat"]), *SMALL, here=project/"mine")
    assert "1 class (cat)" in line and "two or more" in line


def test_pictures_in_no_class_folder(refused, project):
    for i in range(3): picture(project/"mine"/f"{i}.png")
    assert "CLASS/IMAGE" in refused("distill", "--dataset", "./mine", *SMALL, here=project/"mine")


def test_mixed_sizes(refused, project):
    mine = tree(project/"mine", n=3)
    picture(mine/"dog"/"large.png", (20, 16))
    line = refused("distill", "--dataset", mine, *SMALL)
    assert "mixed sizes" in line and "16x16" in line and "20x16" in line and "large.png" in line and "@SIDE" in line
    assert load_dataset(f"{mine}@16").shape == (3, 16, 16)


def test_pictures_that_are_not_square(refused, project):
    mine = tree(project/"mine", n=3, size=(12, 10))
    assert "@S" in refused("distill", "--dataset", mine, *SMALL, here=mine)
    assert load_dataset(f"{mine}@8").shape == (3, 8, 8)


def test_mixed_modes_are_converted(project):
    mine = tree(project/"mine", n=3)
    for mode in ("L", "RGBA", "P", "LA", "1", "I;16"): picture(mine/"cat"/f"mode-{mode.replace(';', '')}.png", mode=mode)
    picture(mine/"dog"/"cmyk.jpg", mode="CMYK")
    made = load_dataset(str(mine))
    assert made.shape == (3, 16, 16) and len(made.images) + len(made.test_images) == 13
    assert main(["distill", "--dataset", str(mine), *SMALL]) == 0


@pytest.mark.parametrize("left", [0, 40, 0.5], ids=["nothing", "the head", "half"])
def test_truncated_picture(refused, project, left):
    mine = tree(project/"mine", n=3)
    file = mine/"dog"/"01.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:left if left != 0.5 else len(whole) // 2])
    line = refused("distill", "--dataset", mine, *SMALL)
    assert "cannot read image" in line and str(Path("dog")/"01.png") in line
    file.write_bytes(whole)
    assert main(["distill", "--dataset", str(mine), *SMALL]) == 0


def test_more_images_than_a_class_has(refused, project):
    mine = tree(project/"mine", n=4)
    load_dataset(str(mine)) # decoded images are kept
    line = refused("distill", "--dataset", mine, *SMALL, "--ipc", "4")
    assert "ipc = 4" in line and "3 training images of class 'cat'" in line and "init = 'noise'" in line
    assert main(["distill", "--dataset", str(mine), *SMALL, "--ipc", "4", "--init", "noise"]) == 0


def test_pixels_that_are_not_finite():
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    good = dict(images=x, labels=y, test_images=x, test_labels=y, classes=("a", "b"))
    assert from_tensors("mine", **good).shape == (1, 8, 8)
    x = x.clone(); x[2, 0, 3, 3] = float("nan")
    for part in ("images", "test_images"):
        with pytest.raises(UserError, match="NaN.*image 2"): from_tensors("mine", **{**good, part: x})
    with pytest.raises(UserError, match="run from 0 to 255|run from"): from_tensors("mine", **{**good, "images": good["images"] * 255})
    with pytest.raises(UserError, match="2 classes"): from_tensors("mine", **{**good, "labels": y + 1})


def test_own_pictures_from_folder_to_report(project, capfd):
    "No download: the outliers and the OOD sets come with scikit-image."
    for name, size, asked in (("square", (16, 16), ""), ("oblong", (12, 10), "@16")):
        mine = f"{tree(project/name, size=size)}{asked}"
        before = content(project/name)
        assert main(["distill", "--dataset", mine, "--outliers", "poe", *SMALL, "--out", f"{name}.safetensors"]) == 0, capfd.readouterr().err
        assert main(["evaluate", f"{name}.safetensors", "--out", f"report-{name}", "--device", "cpu"]) == 0, capfd.readouterr().err
        syn, report = DistilledSet.load(f"{name}.safetensors"), Report.load(f"report-{name}")
        assert syn.shape == (3, 16, 16) and syn.classes == ("cat", "dog") and len(syn.outliers) == 2
        assert report.sources["in"]["n"] == 4 and set(report.ood_values) == {"skimage-textures", "skimage-faces", "skimage-text", "gaussian", "uniform"}
        assert sorted(content(project/f"report-{name}")) == ["logits.safetensors", "ood.csv", "report.json"]
        assert content(project/name) == before


# --- where to write

@pytest.fixture(params=["a file in the way", "/proc"])
def nowhere(request, project):
    "A folder that cannot be made, whoever asks."
    if request.param == "/proc" and not os.path.isdir("/proc/self"): pytest.skip("no /proc here")
    (project/"file").write_text("in the way")
    return project/"file"/"folder" if request.param != "/proc" else Path("/proc/none/folder")


def test_unwritable_folder(refused, finished, project, nowhere):
    finished.save(project/"set.safetensors")
    (project/"nbs"/"paper").mkdir(parents=True)
    notebook(project/"nbs"/"paper"/"fig01_good.ipynb", GOOD)
    for words in (["distill", *SMALL, "--runs", nowhere], ["distill", *SMALL, "--out", nowhere/"x.safetensors"],
                  ["evaluate", "set.safetensors", "--out", nowhere], ["paper", "--preset", "smoke", "--out", nowhere]):
        line = refused(*words)
        assert "cannot write" in line and str(nowhere) in line


def test_out_is_a_folder(refused, project):
    (project/"there").mkdir()
    assert "there" in refused("distill", *SMALL, "--out", "there")


def full_disk(monkeypatch, after=0):
    "From the call number `after` on, nothing reaches the disk."
    calls, real = [], os.fsync
    def fsync(handle):
        calls.append(handle)
        if len(calls) > after: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)
    monkeypatch.setattr(os, "fsync", fsync)


def test_full_disk(refused, finished, project, monkeypatch):
    finished.save(project/"set.safetensors")
    full_disk(monkeypatch)
    for words in (["distill", *SMALL], ["distill", *SMALL, "--out", "out/x.safetensors"], ["evaluate", "set.safetensors", "--out", "report"]):
        assert "No space left on device" in refused(*words)
    with pytest.raises(UserError, match="No space left"): finished.save(project/"set.safetensors")
    assert DistilledSet.load(project/"set.safetensors").shape == (1, 8, 8) # the older file is untouched


@pytest.mark.parametrize("after", range(1, 6))
def test_disk_fills_up_on_the_way(project, monkeypatch, capfd, after):
    "What was written before is whole, what was not is not there; with room again the same command finishes."
    with monkeypatch.context() as m:
        full_disk(m, after)
        status, err = main(["distill", *SMALL, "--out", "x.safetensors"]), capfd.readouterr().err
    assert status == 2 and "No space left on device" in err.splitlines()[-1] and "Traceback" not in err
    left = content(project)
    assert not [name for name in left if ".part" in name or "probe" in name]
    for name, data in left.items():
        if name.endswith(".json"): json.loads(data)
        if name.endswith(".safetensors"): (read_safetensors if "/sides/" in name else DistilledSet.load)(name)
    assert main(["distill", *SMALL, "--out", "x.safetensors"]) == 0
    assert DistilledSet.load("x.safetensors").shape == (1, 8, 8)


# --- files that are not what they should be

def damaged(syn, how):
    "The bytes of a distilled set to which something has happened."
    folder = Path("work"); folder.mkdir()
    syn.save(folder/"whole"); whole = (folder/"whole").read_bytes()
    made = {"cut short": whole[:-100], "cut in the head": whole[:60], "empty": b"", "a text": b"not a tensor in sight",
            "another format": None, "foreign": tensor_bytes({"x": torch.zeros(2)}),
            "hollow": tensor_bytes({"images": syn.images}, {"trustdd": '{"format": 1}'}), "a list": tensor_bytes({"images": syn.images}, {"trustdd": "[1]"})}
    if how == "another format":
        tensors, meta = read_safetensors(folder/"whole")
        made[how] = tensor_bytes(tensors, {k: v.replace('"format": 1', '"format": 9') for k, v in meta.items()})
    if how == "a pickle": torch.save(dict(images=syn.images), folder/"pickle"); made[how] = (folder/"pickle").read_bytes()
    if how == "NaN": replace(syn, images=syn.images * float("nan")).save(folder/"nan"); made[how] = (folder/"nan").read_bytes()
    moments = {"std of 0": dict(std=(0.,)), "std below 0": dict(std=(-0.4,)), "std NaN": dict(std=(float("nan"),)), "std infinite": dict(std=(float("inf"),)),
               "std of 1e308": dict(std=(1e308,)), "std of 1e-308": dict(std=(1e-308,)), "std a text": dict(std=("0.5",)), "std null": dict(std=(None,)),
               "mean NaN": dict(mean=(float("nan"),)), "mean infinite": dict(mean=(float("-inf"),)), "mean below 0": dict(mean=(-0.1,)),
               "std of 0 to 255": dict(std=tuple(255 * v for v in syn.std)), "mean of 0 to 255": dict(mean=tuple(255 * v for v in syn.mean))}
    if how in moments: replace(syn, **moments[how]).save(folder/"odd"); made[how] = (folder/"odd").read_bytes()
    if how == "strange labels": replace(syn, labels=syn.labels + 5).save(folder/"odd"); made[how] = (folder/"odd").read_bytes()
    if how == "no labels": replace(syn, labels=syn.labels[:3]).save(folder/"odd"); made[how] = (folder/"odd").read_bytes()
    shutil.rmtree(folder)
    return made[how]


BROKEN = {"cut short": "cut short", "cut in the head": "cut short", "empty": "cut short", "a text": "not a safetensors file", "a pickle": "not a safetensors file",
          "another format": "format version 9; this version reads 1", "foreign": "not a distilled set", "hollow": "lacks classes, mean, std, provenance", "a list": "not a distilled set",
          "std of 0": "std = [0.0] must be above 0", "std below 0": "std = [-0.4] must be above 0", "std NaN": "NaN is not a finite number", "std infinite": "Infinity is not a finite number",
          "std of 1e308": "must be of colours in [0, 1]", "std of 1e-308": "must be above 0", "std a text": "must be a list of finite numbers", "std null": "must be a list of finite numbers",
          "mean NaN": "NaN is not a finite number", "mean infinite": "-Infinity is not a finite number", "mean below 0": "must be of colours in [0, 1]",
          "std of 0 to 255": "must be of colours in [0, 1]", "mean of 0 to 255": "must be of colours in [0, 1]",
          "NaN": "not finite", "strange labels": "labels outside its 10 classes", "no labels": "fitting shapes"}

@pytest.mark.parametrize("how", BROKEN)
def test_broken_distilled_set(refused, finished, project, how):
    (project/"set.safetensors").write_bytes(damaged(finished, how))
    line = refused("evaluate", "set.safetensors", "--out", "report")
    assert "set.safetensors" in line and BROKEN[how] in line


def begun(exp=None):
    "The folder of a run in the store, with its configuration in it."
    exp = exp or Experiment(dataset="digits", **FIELDS)
    folder = Path("runs")/run_name(exp)
    folder.mkdir(parents=True)
    write_identity(exp, folder)
    (folder/".lock").touch()
    return folder


def test_run_folder_of_another_configuration(refused):
    folder = begun()
    config = json.loads((folder/"config.json").read_text())
    (folder/"config.json").write_text(json.dumps(dict(config, lam=0.9, width=16)))
    line = refused("distill", *SMALL)
    assert "another experiment" in line and "lam: 0.9 there, 0.5 asked" in line and "width: 16 there, 8 asked" in line
    for text, said in (("{", "not readable"), ("[]", "cannot read"), (json.dumps(dict(config, colour="red")), "colour")):
        (folder/"config.json").write_text(text)
        line = refused("distill", *SMALL)
        assert said in line and "config.json" in line


def test_odd_json_is_one_line(refused, project, capfd):
    "Nested a thousand deep, NaN, a number beyond all, a key twice: in every JSON of a run, a set, a rejector and a figure."
    words = ["run", "--dataset", "digits", "--outliers", "poe", "--ood", "gaussian", *SMALL]
    assert main(words) == 0
    folder = next((project/"runs").rglob("report.json")).parent
    assert main(["reject", str(folder), "--out", "model.safetensors", "--device", "cpu", "--epochs", "1"]) == 0
    picture(project/"one.png")
    for name in ("fig02.csv", "fig02.json", "fig02.png"): shutil.copy(Path(__file__).parent.parent/"figures"/"quick"/name, project)
    doors = {folder/"config.json": [words], folder/"images.json": [words], folder/"report.json": [words], folder/"distilled.safetensors": [["evaluate", folder/"distilled.safetensors"], ["show", folder]],
             project/"model.safetensors": [["predict", "model.safetensors", "one.png"]], project/"fig02.json": [["explain", "fig02.csv", "0", "left"], ["gallery", "--figures", "."]]}
    for path, commands in doors.items():
        whole = path.read_bytes()
        tensors, meta = read_safetensors(path) if path.suffix == ".safetensors" else (None, {"": whole.decode()})
        (key, text), = meta.items()
        bare = {k: v for k, v in json.loads(text).items() if k not in ("checksum", "digest")}
        for what, odd in odd_json(json.dumps(bare)).items():
            if tensors: write_safetensors(path, tensors, {key: odd})
            else: path.write_text(odd)
            for command in commands: assert path.name in refused(*command), what
            if path.name in ("config.json", "report.json"):
                assert main(["list"]) == 0 and capfd.readouterr().out.splitlines()[1].startswith("damaged"), what
        path.write_bytes(whole)
    assert main(words) == 0


def test_odd_json_in_the_cache_is_made_again(project):
    "What images are known by is kept beside the decoded ones."
    from trustdd.data.identity import dataset_identity
    mine = tree(project/"mine")
    right = dataset_identity(str(mine))
    cached, = (project/"data"/".cache").glob("*.json")
    for odd in odd_json(cached.read_text()).values():
        cached.write_text(odd)
        assert dataset_identity(str(mine)) == right and "more" not in json.loads(cached.read_text())


def test_distilled_set_of_another_run(refused, finished):
    "Copied by hand into a run's folder: its own configuration gives it away."
    folder = begun()
    finished.save(folder/"distilled.safetensors")
    assert "outliers: 'poe' there, 'none' asked" in refused("distill", *SMALL)


@pytest.mark.parametrize("how", ["a text", "cut short", "foreign", "hollow", "another run's"])
def test_broken_checkpoint(refused, finished, how):
    from trustdd.distillation.distillation import save_checkpoint
    from trustdd.distillation.starting_images import start
    exp, folder = Experiment(dataset="digits", **FIELDS), begun()
    state, file = start(exp, load_dataset("digits")), folder/"checkpoint.safetensors"
    save_checkpoint(state, exp if how != "another run's" else replace(exp, lam=0.9), file)
    if how == "cut short": file.write_bytes(file.read_bytes()[:-100])
    if how == "a text": file.write_text("nothing to go on with")
    if how == "foreign": file.write_bytes(tensor_bytes({"x": torch.zeros(2)}))
    if how == "hollow": file.write_bytes(tensor_bytes({"images": state.images}, {"checkpoint": json.dumps(dict(experiment=to_dict(exp)))}))
    line = refused("distill", *SMALL)
    assert "checkpoint.safetensors" in line and ("lam: 0.9 there" in line if how == "another run's" else "delete" in line)
    file.unlink()
    assert main(["distill", *SMALL]) == 0


def test_broken_report(capfd):
    "The list goes on; whoever wants the numbers is told which file is broken."
    folder = begun()
    (folder/"report.json").write_text("{")
    assert main(["list"]) == 0 and capfd.readouterr().out.splitlines()[1].startswith("damaged")
    run = load_or_run(Experiment(dataset="digits", **FIELDS), "runs")
    with pytest.raises(UserError, match="report.json.*not a report"): run.report


# --- notebooks

GOOD = """import json
from pathlib import Path
Path(out, "{name}.json").write_text(json.dumps(dict(verdict="The claim held: 1 > 0", preset=preset)))"""

def notebook(path, body, more=""):
    "A small figure: a cell of parameters, and one that does something."
    cells = [nbformat.v4.new_code_cell(f'preset:str = "quick"\nout:str = ""{more}', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(body.replace("{name}", path.stem.split("_")[0]))]
    meta = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=meta), path)


@pytest.fixture
def atlas(project):
    folder = project/"nbs"/"paper"
    folder.mkdir(parents=True)
    notebook(folder/"fig01_good.ipynb", GOOD)
    notebook(folder/"tab01_broken.ipynb", "raise ValueError('no ink')")
    return folder


def test_a_failing_notebook_does_not_stop_the_others(atlas, project, capfd):
    "The broken table comes first, the figure is made all the same."
    assert main(["paper", "--preset", "smoke"]) == 1
    out, err = capfd.readouterr()
    assert "fig01  made. The claim held" in out and "tab01  FAILED: ValueError: no ink" in out and "1 of 2 made" in out
    assert "Traceback" not in err
    made = project/"figures"/"smoke"
    assert (made/"fig01.json").exists() and not list(made.glob("tab01*")) and not (made/".stamps"/"tab01").exists()


@pytest.mark.parametrize("call", [1, 3])
def test_a_disk_that_fills_up_while_a_notebook_is_written(atlas, project, monkeypatch, capfd, call):
    "papermill writes after every cell. Half a notebook is not kept, in one line; with room again, the same command makes it."
    from papermill.iorw import LocalHandler
    write, calls = LocalHandler.write, []
    def full(self, text, path):
        calls.append(path)
        if len(calls) < call: return write(self, text, path)
        write(self, text[:len(text) // 2], path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(LocalHandler, "write", full)
        assert main(["paper", "--preset", "smoke", "--only", "fig01"]) == 1
    out, err = capfd.readouterr()
    assert len(calls) >= call and "fig01  FAILED" in out and "No space left on device" in out and "Traceback" not in err
    made = project/"figures"/"smoke"
    assert not list(made.rglob("*.ipynb")) and not list(made.rglob("fig01")) and not list(made.rglob(".trustdd"))
    assert main(["paper", "--preset", "smoke", "--only", "fig01"]) == 0
    assert json.loads((made/"notebooks"/"fig01.ipynb").read_text())["cells"]


def test_the_clock_decides_nothing(atlas, project, monkeypatch, capfd):
    "Set back or forward between two calls, with files from the future or from 1970: what is up to date stays so, and what has changed is made again."
    words = ["paper", "--preset", "smoke", "--only", "fig01"]
    assert main(words) == 0
    for seconds in (0, 4_000_000_000):
        for path in project.rglob("*"): os.utime(path, (seconds, seconds))
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: float(seconds + 1))
            assert main(words) == 0
        assert "fig01  up to date." in capfd.readouterr().out
    old = (atlas/"fig01_good.ipynb").stat()
    notebook(atlas/"fig01_good.ipynb", GOOD + "\n# another version")
    os.utime(atlas/"fig01_good.ipynb", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert main(words) == 0 and "fig01  made." in capfd.readouterr().out


def test_wrong_words_to_paper(refused, atlas):
    line = refused("paper", "--preset", "smoke", "--only", "fig01,fig99")
    assert "fig99" in line and "fig01, tab01" in line
    assert "runs" in refused("paper", "--preset", "smoke", "--runs", "elsewhere") # these notebooks have no such parameter


def test_unknown_parameter_of_a_notebook(atlas, project):
    "papermill itself would only warn, and run with the defaults."
    before = content(project)
    with pytest.raises(UserError, match="colour.*choose one of: preset, out"): make_items("smoke", parameters=dict(colour="red"), progress=False)
    assert content(project) == before and not (project/"figures").exists()


def test_a_project_without_notebooks(refused):
    assert "no notebooks" in refused("paper", "--preset", "smoke")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"preset": "smoke"}'], ids=["empty", "cut", "a list", "no verdict"])
def test_a_description_that_is_none_is_named(project, capfd, text):
    "The item failed with the words of the JSON reader, and no file's name; the others are told of all the same."
    folder = project/"nbs"/"paper"
    folder.mkdir(parents=True)
    notebook(folder/"fig01_good.ipynb", GOOD)
    notebook(folder/"fig02_cut.ipynb", GOOD.replace('json.dumps(dict(verdict="The claim held: 1 > 0", preset=preset))', repr(text)))
    assert main(["paper", "--preset", "smoke", "--no-page"]) == 1
    out = capfd.readouterr().out
    assert "fig01  made. The claim held" in out and "1 of 2 made" in out
    assert f"fig02  FAILED: {project/'figures'/'smoke'/'fig02.json'} is no description" in out
    (project/"figures"/"smoke"/"fig01.json").write_text(text) # of one that was made before: it is made again
    notebook(folder/"fig02_cut.ipynb", GOOD)
    assert main(["paper", "--preset", "smoke", "--no-page"]) == 0 and "2 of 2 made" in capfd.readouterr().out


# --- the same from a shell

def shell(*words, **kw):
    "The installed command."
    script = Path(sys.executable).with_name("trustdd")
    start = [str(script)] if script.exists() else [sys.executable, "-c", "import sys; from trustdd.cli import main; sys.exit(main())"]
    return subprocess.run([*start, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, **kw)


def test_shell_wrong_word(project):
    done = shell("distill", "--dataset", "nosuch", "--device", "cpu")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("trustdd: ") and done.stderr.count("\n") == 1 and "nosuch" in done.stderr
    assert list(content(project)) == ["settings.ini"]


def test_shell_file_too_large(project):
    "The system itself refuses to write more than 2 kB to a file: the set does not fit, and no part of it stays."
    resource = pytest.importorskip("resource")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
    done = shell("distill", *SMALL, preexec_fn=limit, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1] and os.strerror(errno.EFBIG) in done.stderr
    assert not [n for n in content(project) if n.endswith((".safetensors", ".part"))]
