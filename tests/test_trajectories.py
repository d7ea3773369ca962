"Trajectory matching asked for wrongly, gone astray, or short of a sound expert says so in one line and yields no wrong result; every variant of it works."
import re, shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as tensor_bytes

import trustdd.distillation.buffers
from conftest import content, one_thread
from test_bad_input import full_disk, tree
from test_identity import write_images
from trustdd.distillation.buffers import Buffer, buffer_name
from trustdd.reproduction.cli import main
from trustdd.reproduction.run_store import write_identity
from trustdd.core.experiment import Experiment, run_name
from trustdd.core.checks import UserError
from trustdd.data.catalog import load_dataset, prepared
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill, load_checkpoint
from trustdd.evaluation.logits import Logits, predict
from trustdd.reproduction.runs import load_or_distill, load_or_run
from trustdd.reproduction.jobs import run_buffer
from trustdd.networks.training import train

SMALL = "--method mtt --preset smoke --ipc 1 --iterations 1 --n-nets 1 --epochs 1 --n-test 20 --ood gaussian --device cpu".split()
EXPERTS = "buffers --preset smoke --device cpu".split()
EXP = Experiment(method="mtt", preset="smoke", ipc=1, iterations=1, n_nets=1, epochs=1, n_test=20, ood=("gaussian",))
BUFFER, RUN = Path("runs")/buffer_name(EXP), Path("runs")/run_name(EXP)
pytestmark = pytest.mark.usefixtures("project")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run store with the experts of `EXP`."
    store = tmp_path_factory.mktemp("experts")
    with one_thread(): run_buffer(EXP, store, 1, "cpu", progress=False)
    return store


@pytest.fixture
def experts(project, trained):
    "The folder of finished experts in this test's run store."
    shutil.copytree(trained, "runs")
    return project/BUFFER


def timeless(files):
    "File → bytes, without the seconds that logs tell, and the checksums of their lines."
    return {k: re.sub(rb'"seconds": [\d.]+|"checksum": "\w+"', b"", v) if k.endswith(".jsonl") else v for k, v in files.items()}


@pytest.fixture
def fails(capfd):
    "Runs a command that must fail on its way, with bars on stderr; returns the last line."
    def run(*words, status=1):
        capfd.readouterr()
        got, (out, err) = main([str(w) for w in words]), capfd.readouterr()
        last = err.rstrip("\n").splitlines()[-1]
        assert (got, out) == (status, "") and last.startswith("trustdd: ") and err.count("trustdd: ") == 1 and "Traceback" not in err, err
        return last
    return run


# --- fields

WRONG = [
    ("--syn-steps 0", "syn_steps 0 1 or more"),
    ("--syn-steps ten", "--syn-steps ten whole number"),
    ("--expert-epochs 9", "train_epochs 2 arrive at 9 max_start_epoch expert_epochs"),
    ("--expert-epochs 0", "expert_epochs 0 1 or more"),
    ("--max-start-epoch 0", "max_start_epoch 0 1 or more"),
    ("--max-start-epoch 3", "train_epochs 2 epoch 2"),
    ("--train-epochs 0", "train_epochs 0"),
    ("--experts 0", "experts 0 1 or more"),
    ("--batch-train 0", "batch_train 0"),
    ("--batch-syn -1", "batch_syn -1 0 or more"),
    ("--expert-seed -1", "expert_seed -1 0 or more"),
    ("--lr-alpha -1", "lr_alpha -1 0 or more"),
    ("--lr-alpha inf", "lr_alpha inf finite"),
    ("--syn-lr nan", "syn_lr nan finite"),
    ("--syn-lr 0", "syn_lr 0 above 0"),
    ("--lr-teacher 0", "lr_teacher 0 above 0"),
    ("--lr-img -1", "lr_img -1"),
    ("--outer 2", "outer 2 mtt dc"),
    ("--inner 1", "inner 1 mtt dc"),
    ("--zca maybe", "--zca maybe true or false"),
    ("--watch 0,1", "watch holdout 0.2"),
    ("--watch 0,two --holdout 0.2", "watch two list of iterations"),
    ("--watch 0,99 --holdout 0.2", "watch 99 iterations"),
    ("--holdout 1", "holdout 1 below 1"),
    ("--outliers oe --aux nosuch", "nosuch"),
    ("--outliers poe --corruptions blur", "blur invert"),
    ("--dataset nosuch", "nosuch digits"),
    ("--depth 9", "convnet depth 9 512"),
    ("--device tpu", "tpu cpu"),
]

@pytest.mark.parametrize("words, said", WRONG, ids=lambda v: v)
def test_wrong_words(refused, words, said):
    for command in (["distill", *SMALL], EXPERTS):
        line = refused(*command, *words.split())
        for part in said.split(): assert part in line


@pytest.mark.parametrize("words, said", [
    ("buffers --preset smoke --workers 0", "--workers 0 1 or more"),
    ("buffers --preset smoke --workers two", "--workers two whole number"),
    ("buffers --preset smoke --method dsa", "dsa experts mtt"),
    ("buffers --preset fast", "fast smoke quick"),
    ("distill --preset smoke --method dsa --syn-steps 3", "syn_steps 3 dsa mtt"),
    ("distill --preset smoke --method dc --experts 3", "experts 3 dc mtt"),
], ids=lambda v: v)
def test_wrong_words_of_other_commands(refused, words, said):
    line = refused(*words.split())
    for part in said.split(): assert part in line


@pytest.mark.parametrize("words, said", [("--ood nosuch", "nosuch"), ("--ood digits", "digits in-distribution"), ("--ipc 101", "ipc 101 100 noise")], ids=str)
def test_what_cannot_be_distilled_is_said_before_experts_are_trained(refused, words, said):
    line = refused("distill", *SMALL, *words.split())
    for part in said.split(): assert part in line


def test_run_folder_of_another_configuration_is_noticed_before_experts_are_trained(refused, project):
    RUN.mkdir(parents=True)
    write_identity(EXP, RUN)
    (RUN/"config.json").write_text("{")
    assert "config.json" in refused("distill", *SMALL)


def test_other_test_images_need_no_experts(experts, project, capfd):
    "The set is there, and only networks are trained; all experts were trained once more before it was looked for."
    words = ["run", *SMALL[:-4], "--ood", "odd", "--device", "cpu"]
    write_images(project/"data"/"odd", 1, classes=("x",), parts=("test",))
    assert main(words) == 0
    first, = Path("runs").rglob("distilled.safetensors")
    shutil.rmtree(experts)
    write_images(project/"data"/"odd", 2, classes=("x",), parts=("test",))
    capfd.readouterr()
    assert main([*words, "--dry-run"]) == 0 and "experts" not in capfd.readouterr().out
    assert main(words) == 0 and not experts.exists()
    other = {f.parent.name: f.read_bytes() for f in first.parent.parent.glob("*/distilled.safetensors")}
    assert len(other) == 2 and len(set(other.values())) == 1


# --- a run that goes astray

@pytest.mark.parametrize("words, said", [("--lr-alpha 6e-5", "step size not positive lr_alpha 6e-05 syn_lr"), ("--lr-alpha 1e9", "step size lr_alpha 1000000000.0"), ("--lr-img 1e39", "pixels finite lr_img 1e+39"),
                                         ("--syn-lr 1e30", "parameters finite syn_lr 1e+30 syn_steps 3 lr_alpha")], ids=str)
def test_diverging(fails, experts, words, said):
    "The checkpoint holds what was good, and asking again does not make anything of it."
    words = ["--iterations", "12", *words.split()]
    line = fails("distill", *SMALL, *words)
    for part in said.split(): assert part in line
    good = int(re.search(r"the state after iteration (\d+) is kept", line)[1])
    assert f"iteration {good + 1}" in line and (good > 0 or "6e-5" not in words)
    exp = replace(EXP, iterations=12, **{words[2][2:].replace("-", "_"): float(words[3])})
    folder = Path("runs")/run_name(exp)
    kept = load_checkpoint(folder/"checkpoint.safetensors", exp, "cpu")[0]
    assert kept.iteration == len(kept.losses) == good and 0 < kept.lr < float("inf")
    if good: # the state is that of a run that ends there
        short = distill(replace(exp, iterations=good), device="cpu", progress=False, buffer=experts)
        assert torch.equal(kept.images, short.images) and float(kept.lr) == short.lr
    assert kept.images.isfinite().all() and not (folder/"distilled.safetensors").exists() and not (folder/"log.jsonl").exists()
    before = {k: v for k, v in content("runs").items() if "checkpoint" not in k}
    assert fails("distill", *SMALL, *words) == line
    assert {k: v for k, v in content("runs").items() if "checkpoint" not in k} == before
    again = load_checkpoint(folder/"checkpoint.safetensors", exp, "cpu")[0]
    assert again.iteration == good and torch.equal(again.images, kept.images) and torch.equal(again.lr, kept.lr)


def test_diverging_expert(fails, project):
    for command in (EXPERTS, ["distill", *SMALL]):
        line = fails(*command, "--lr-teacher", "1e6")
        assert "expert 0" in line and "not finite after epoch 1" in line and "lr_teacher than 1000000.0" in line
    assert not list(project.rglob("expert*.safetensors"))


def test_a_look_that_diverges_is_not_skipped_when_asked_again(experts, project):
    "Networks that cannot be trained on the set of iteration 2 stop the run, each time it is asked for."
    exp = replace(EXP, iterations=4, holdout=0.2, watch=(2,), epochs=3, weight_decay=1e30)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="network 0"): load_or_distill(exp, "runs", "cpu", progress=False)
    assert not (Path("runs")/run_name(exp)/"dynamics.jsonl").exists() and not (Path("runs")/run_name(exp)/"distilled.safetensors").exists()


# --- experts that are not sound

def of_another_experiment(folder, **fields):
    run_buffer(other := replace(EXP, **fields), "other", 1, "cpu", progress=False)
    for k in range(EXP.experts): shutil.copy(Path("other")/buffer_name(other)/f"expert00{k}.safetensors", folder)


DAMAGE = {
    "cut short": lambda f: f.write_bytes(f.read_bytes()[:-100]),
    "cut in the head": lambda f: f.write_bytes(f.read_bytes()[:60]),
    "longer": lambda f: f.write_bytes(f.read_bytes() + b"more"),
    "empty": lambda f: f.write_bytes(b""),
    "a text": lambda f: f.write_text("no expert"),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "foreign": lambda f: f.write_bytes(tensor_bytes({"x": torch.zeros(2)})),
    "foreign with words": lambda f: f.write_bytes(tensor_bytes({"snapshots": torch.zeros(3, 2)}, {"expert": "{}"})),
    "foreign with a list": lambda f: f.write_bytes(tensor_bytes({"snapshots": torch.zeros(3, 2)}, {"expert": "[]"})),
    "another expert": lambda f: shutil.copy(f.with_name("expert001.safetensors"), f),
    "of another experiment": lambda f: of_another_experiment(f.parent, lr_teacher=0.02),
    "of fewer epochs": lambda f: of_another_experiment(f.parent, train_epochs=1),
}

@pytest.mark.parametrize("how", DAMAGE)
def test_unsound_expert(refused, experts, trained, how):
    file = experts/"expert000.safetensors"
    DAMAGE[how](file)
    for words in (["distill", *SMALL], EXPERTS):
        line = refused(*words)
        assert "expert000.safetensors" in line and "delete it" in line
    with pytest.raises(UserError, match="expert000.safetensors"): Buffer(experts, EXP)
    with pytest.raises(UserError, match="expert000.safetensors"): load_or_run(EXP, "runs", "cpu", progress=False)
    for f in experts.glob("*.safetensors"): f.rmdir() if f.is_dir() else f.unlink() # as it says
    assert main(EXPERTS) == 0
    assert timeless(content(experts)) == timeless(content(trained/buffer_name(EXP)))


def left_by_its_owner(part, rows, lines, extra=b""):
    "As a process leaves an expert that was killed after so many rows and lines; returns where rows begin and how long one is."
    file, log = part.with_suffix(".safetensors"), part.with_suffix(".jsonl")
    with safe_open(file, "pt") as f: epochs, size = f.get_slice("snapshots").get_shape()
    data = file.read_bytes()
    head = len(data) - 4 * size * epochs
    part.write_bytes(data[:head + round(4 * size * rows)] + extra)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:lines]))
    file.unlink()
    return head, 4 * size


def flipped(part, head, size):
    data = bytearray(part.read_bytes())
    data[head + size + 5] ^= 1 # in the second row
    part.write_bytes(bytes(data))


@pytest.mark.parametrize("how, kept", [("between rows", 1), ("half a row", 1), ("a row without its line", 1), ("a line without its row", 1), ("half a line", 1), ("too long", 1), ("a bit flipped", 0), ("no log", -1), ("no part", -1),
                                       ("no head", -1), ("all but its name", 2), ("an empty lock", 1)])
def test_the_owner_died(experts, trained, monkeypatch, how, kept):
    "What it left is used as far as it is whole: the experts are those that nobody interrupted."
    part, log = experts/"expert001.part", experts/"expert001.jsonl"
    rows, lines = {"half a row": (2.5, 2), "a row without its line": (3, 2), "a line without its row": (2, 3), "a bit flipped": (3, 3), "all but its name": (3, 3)}.get(how, (2, 2))
    where = left_by_its_owner(part, rows, lines, b"more" if how == "too long" else b"")
    if how == "half a line": log.write_text(log.read_text() + '{"epoch": 2, "lo')
    if how == "a bit flipped": flipped(part, *where)
    if how == "no log": log.unlink()
    if how == "no part": part.unlink()
    if how == "no head": part.write_bytes(b"")
    for name in (".expert001.lock", ".lock", ".expert000.lock"): (experts/name).touch() if how == "an empty lock" else (experts/name).unlink(missing_ok=True)
    epochs, real = [], trustdd.distillation.buffers.expert_batches
    monkeypatch.setattr("trustdd.distillation.buffers.expert_batches", lambda *a: epochs.append(1) or real(*a))
    assert main(EXPERTS) == 0
    assert len(epochs) == EXP.train_epochs - max(kept, 0)
    same = lambda folder: {k: v for k, v in timeless(content(folder)).items() if not k.endswith(".lock")}
    assert same(experts) == same(trained/buffer_name(EXP))


def test_interrupted_by_the_user(project, trained, capfd, monkeypatch):
    calls, real = [], trustdd.distillation.buffers.expert_batches
    def interrupt(*a):
        if calls: raise KeyboardInterrupt
        calls.append(1)
        return real(*a)
    with monkeypatch.context() as m:
        m.setattr("trustdd.distillation.buffers.expert_batches", interrupt)
        assert main(EXPERTS) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "trustdd: interrupted; run the same command again to continue"
    assert len((project/BUFFER/"expert000.jsonl").read_text().splitlines()) == 2
    assert main(EXPERTS) == 0
    assert timeless(content(project/BUFFER)) == timeless(content(trained/buffer_name(EXP)))


# --- where they go

def test_disk_without_room(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**9, used=10**9, free=1000))
    for words in (["distill", *SMALL], EXPERTS):
        line = refused(*words)
        assert "2 experts of 2 epochs" in line and "free" in line and "fewer" in line and "buffers" in line


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 6, 12, 13])
def test_disk_fills_up_on_the_way(fails, project, trained, monkeypatch, after):
    "What was written before is whole; with room again the same command finishes."
    with monkeypatch.context() as m:
        full_disk(m, after)
        line = fails(*EXPERTS, status=2)
    assert "No space left on device" in line and "cannot write" in line
    assert main(EXPERTS) == 0
    assert timeless(content(project/BUFFER)) == timeless(content(trained/buffer_name(EXP)))


def test_unwritable_folder(refused, project):
    (project/"file").write_text("in the way")
    for words in (["distill", *SMALL], EXPERTS): assert "cannot write" in refused(*words, "--runs", "file/runs")


# --- the doors

def test_list_shows_experts(experts, capfd):
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    assert re.search(r"experts +2  buffers/digits/none-\w+  2 epochs each, 0\.\d MB\n", out) and "begun" not in out
    left_by_its_owner(experts/"expert001.part", 2, 2)
    assert main(["list"]) == 0
    assert re.search(r"experts +1  buffers/digits/none-\w+  2 epochs each, 0\.\d MB, 1 more begun\n", capfd.readouterr().out)
    assert main(["distill", *SMALL]) == 0
    capfd.readouterr()
    assert main(["list"]) == 0
    out = capfd.readouterr().out
    assert re.search(f"distilled +– +–  {run_name(EXP)}", out) and re.search(r"experts +2 ", out)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fields": 3}', "{}"])
def test_list_with_a_damaged_description(experts, capfd, text):
    (experts/"buffer.json").write_text(text)
    assert main(["list"]) == 0
    assert re.search(r"experts +2 ", capfd.readouterr().out)


def test_workers_and_again_at_once(project, trained, capfd, monkeypatch):
    "Two processes train the experts; asked again, no process is started and nothing is written."
    assert main([*EXPERTS, "--workers", "2"]) == 0
    first = capfd.readouterr().out
    assert re.match(r"2 experts of 2 epochs, training loss of the last \d+\.\d{3} to \d+\.\d{3}\n.*/buffers/digits/none-\w+\n", first)
    assert timeless(content(project/BUFFER)) == timeless(content(trained/buffer_name(EXP)))
    def never(*a, **kw): raise AssertionError("not at once")
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", never)
    monkeypatch.setattr("trustdd.distillation.buffers._train_expert", never)
    before = content(project)
    assert main([*EXPERTS, "--workers", "2"]) == 0 and capfd.readouterr().out == first and content(project) == before


def test_a_finished_run_does_without_its_experts(experts, capfd, monkeypatch):
    "They are large; whoever deletes them keeps the run."
    assert main(["distill", *SMALL]) == 0
    first = capfd.readouterr().out
    shutil.rmtree(experts)
    def never(*a, **kw): raise AssertionError("trained again")
    monkeypatch.setattr("trustdd.distillation.buffers._train_expert", never)
    assert main(["distill", *SMALL]) == 0 and capfd.readouterr().out == first


def test_evaluate_takes_the_learned_step_size(experts, capfd):
    assert main(["distill", *SMALL, "--epochs", "6", "--lr-alpha", "2e-5", "--out", "set.safetensors"]) == 0
    assert main(["evaluate", "set.safetensors", "--ood", "gaussian", "--out", "report", "--device", "cpu"]) == 0, capfd.readouterr().err
    syn = DistilledSet.load("set.safetensors")
    got, images = Logits.load("report/logits.safetensors").values["in"], load_dataset("digits").test_images
    logits = lambda **kw: predict(train(n_nets=1, device="cpu", progress=False, **kw)[0], images, prepared(syn.experiment))
    by_hand = logits(source=replace(syn, lr=None), exp=replace(syn.experiment, lr_eval=syn.lr))
    assert torch.equal(got[0], by_hand) and syn.lr not in (syn.experiment.lr_eval, syn.experiment.syn_lr)
    assert not torch.equal(got[0], logits(source=replace(syn, lr=None)))


# --- every variant

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "A store of experts for all variants, and pictures in colour."
    folder = tmp_path_factory.mktemp("variants")
    tree(folder/"colour", ("cat", "dog", "owl"), n=8)
    return folder


@pytest.mark.parametrize("fields", [
    dict(), dict(norm="batch"), dict(norm="batch", outliers="poe", batch_syn=4), dict(norm="layer", pool="max", act="sigmoid"), dict(pool="none", act="leakyrelu"), dict(model="mlp"),
    dict(outliers="oe"), dict(outliers="oe", ipc=2, outliers_per_slot=1), dict(outliers="poe", ipc=3, outliers_per_slot=2, batch_syn=7), dict(batch_syn=1),
    dict(outliers="poe", distill_outliers=False), dict(init="noise", outliers="poe", outliers_per_slot=3), dict(strategy="none"), dict(strategy="flip_rotate", align_corners=False), dict(zca=True, outliers="poe"),
    dict(holdout=0.2, outliers="oe"), dict(lr_alpha=0.0), dict(syn_steps=1), dict(train_epochs=3, expert_epochs=2, max_start_epoch=2), dict(experts=1),
    dict(dataset="colour"), dict(dataset="colour", outliers="poe", norm="batch"), dict(dataset="colour", outliers="poe", corruptions=("ghost", "invert"), batch_syn=2), dict(dataset="digits@16", depth=3),
], ids=lambda f: ", ".join(f"{k}={v}" for k, v in f.items()) or "plain")
def test_variants(shared, monkeypatch, fields):
    "Finite images of the right shapes, in motion; the same again from the same experts."
    monkeypatch.setattr("trustdd.distillation.distillation.commit", lambda: "a commit")
    if fields.get("dataset") == "colour": fields = {**fields, "dataset": str(shared/"colour")}
    exp = Experiment(**{**dict(method="mtt", preset="smoke", ipc=1, iterations=2, lr_alpha=1e-7), **fields})
    made = [distill(exp, device="cpu", progress=False, buffer=shared/buffer_name(exp)) for _ in range(2)]
    syn, data = made[0], prepared(exp)
    begun = distill(replace(exp, iterations=1), device="cpu", progress=False, buffer=shared/buffer_name(exp))
    assert syn.images.shape == (data.n_classes * exp.ipc, *data.shape) and syn.outliers.shape == (data.n_classes * exp.outliers_per_slot, *data.shape)
    assert syn.images.isfinite().all() and syn.outliers.isfinite().all() and not torch.equal(syn.images, begun.images)
    assert 0 < syn.lr < 1 and (syn.lr == begun.lr) == (exp.lr_alpha == 0)
    if exp.outliers_per_slot: assert torch.equal(syn.outliers, begun.outliers) == (not exp.distill_outliers)
    assert torch.equal(syn.images, made[1].images) and torch.equal(syn.outliers, made[1].outliers) and syn.lr == made[1].lr
