"Methods are killed, resumed, shared and added: distribution matching, coresets, those of others."
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from conftest import ROOT, server
from trustdd.core import experiment
from trustdd.core.experiment import Experiment, run_name, to_dict
from trustdd.data.catalog import load_dataset
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation import distribution_matching as dm, methods
from trustdd.distillation.distillation import distill, load_checkpoint
from trustdd.evaluation.evaluation import evaluate
from trustdd.networks import training
from trustdd.networks.training import train
from trustdd.reproduction.cli import main
from trustdd.reproduction.estimate import estimate
from trustdd.reproduction.runs import load_or_run

SMALL = dict(dataset="digits", preset="smoke", ipc=1, n_nets=1, epochs=2, n_test=20,
             ood=("gaussian", "skimage-text"))
DM = {o: Experiment(method="dm", outliers=o, iterations=4, **SMALL) for o in ("none", "oe", "poe")}
EXP = DM["poe"]
MATCHES = 2 * 10  # of one iteration: ten classes and ten slots

# A process that reads requests, one line each, and forks a group of processes for each of them, so
# that torch is imported once. "die" is a function and the number of the call in which the first
# process of the group sends SIGKILL to all of it.
SERVER = """
import itertools, json, os, signal, socket, sys
import torch
import pandas, sklearn.metrics, torch._dynamo, torch.utils.flop_counter # what a child would load
import trustdd.distillation.distillation, trustdd.distillation.distribution_matching
from trustdd.core.distributed import process_group
from trustdd.core.experiment import Experiment
from trustdd.networks import training
from trustdd.reproduction.estimate import estimate
from trustdd.reproduction.runs import load_or_run

def deadly(function, number):
    holder, name = function.rsplit(".", 1)
    holder, count = sys.modules[holder], itertools.count(1)
    plain = getattr(holder, name)
    def call(*a, **kw):
        if next(count) == number: os.killpg(0, signal.SIGKILL)
        return plain(*a, **kw)
    setattr(holder, name, call)

def child(r, exps, store, die=None, seed=0):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    if die and r == 0: deadly(*die)
    with process_group():
        for e in exps: load_or_run(Experiment(**e), store, "cpu", progress=False, every=0)

def fork(r, n, port, leader, **request):
    pid = os.fork()
    if pid: return pid
    status = 1
    try:
        os.setpgid(0, leader)
        one = dict(RANK=r, LOCAL_RANK=r, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        if n > 1: os.environ |= {k: str(v) for k, v in one.items()}
        child(r, **request)
        status = 0
    except BaseException: sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)

trustdd.distillation.distillation.commit = lambda: "a commit"
for line in sys.stdin:
    request = json.loads(line)
    n, pids = request.pop("processes", 1), []
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for r in range(n): pids.append(fork(r, n, port, pids[0] if pids else 0, **request))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""
pytestmark = [pytest.mark.usefixtures("one_commit"),
              pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")]
KILLED = -signal.SIGKILL


@pytest.fixture
def one_commit(monkeypatch):
    "What a file says about its making stays the same if somebody commits during the tests."
    monkeypatch.setattr("trustdd.distillation.distillation.commit", lambda: "a commit")


@pytest.fixture(scope="module")
def ask():
    "`ask(request)` runs a group of processes and returns their exit statuses."
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with server(SERVER, timeout=60, env=alone | {"TRUSTDD_TIMEOUT": "100"}) as answer:
        def run(*exps, store, **request):
            return answer(dict(exps=[to_dict(e) for e in exps], store=str(store), **request))
        yield run


@pytest.fixture(scope="module")
def straight(ask, tmp_path_factory):
    "The store of runs that one process made without an interruption."
    store = tmp_path_factory.mktemp("straight")
    assert ask(*DM.values(), store=store) == [0]
    return store


def lines(log):
    "A log without the seconds that something took."
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "checksum")} for r in records]


def same(store, other, exp=EXP):
    "Is the run of `exp` the same in two stores, to the byte, but for seconds?"
    a, b = store/run_name(exp), other/run_name(exp)
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for name in ("config.json", "distilled.safetensors", "ood.csv", "scores.safetensors"):
        assert (a/name).read_bytes() == (b/name).read_bytes(), name
    assert lines(a/"log.jsonl") == lines(b/"log.jsonl")
    return True


# --- distribution matching: killed, shared among processes, out of bounds

MATCH = "trustdd.distillation.distribution_matching.match_embeddings"
SAVE = "trustdd.distillation.distillation.save_checkpoint"
MOMENTS = {
    "in the first iteration": (MATCH, 3),
    "between images and outliers": (MATCH, MATCHES + 11),
    "in the last iteration": (MATCH, 3 * MATCHES + 5),
    "between an iteration and its checkpoint": (SAVE, 2),
    "before a checkpoint is renamed": ("os.replace", 3),
    "with the set there": ("trustdd.reproduction.runs.train", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_dm_killed_and_resumed_gives_the_same_bytes(ask, straight, tmp_path, moment):
    assert ask(EXP, store=tmp_path, die=MOMENTS[moment]) == [KILLED]
    assert not (tmp_path/run_name(EXP)/"report.json").exists()
    assert ask(EXP, store=tmp_path, seed=1) == [0]
    assert same(tmp_path, straight)


def test_iterations_done_before_a_kill_are_not_done_again(ask, straight, tmp_path):
    assert ask(EXP, store=tmp_path, die=(MATCH, 3 * MATCHES + 5)) == [KILLED]
    state, _ = load_checkpoint(tmp_path/run_name(EXP)/"checkpoint.safetensors", EXP, "cpu")
    assert state.iteration == 3 and len(state.losses) == 3
    assert ask(EXP, store=tmp_path, die=(MATCH, MATCHES + 1)) == [0]  # one iteration is left
    assert same(tmp_path, straight)


@pytest.mark.parametrize("processes", (2, 3))
def test_several_processes_make_what_one_makes(ask, straight, tmp_path, processes):
    assert ask(*DM.values(), store=tmp_path, processes=processes) == [0] * processes
    assert all(same(tmp_path, straight, exp) for exp in DM.values())


def test_two_processes_are_killed_and_one_continues(ask, straight, tmp_path):
    begun = ask(EXP, store=tmp_path, processes=2, die=(MATCH, MATCHES + 5))
    assert begun == [KILLED, KILLED]
    checkpoint = tmp_path/run_name(EXP)/"checkpoint.safetensors"
    assert load_checkpoint(checkpoint, EXP, "cpu")[0].iteration == 2  # half of them are its own
    assert ask(EXP, store=tmp_path) == [0]
    assert same(tmp_path, straight)


def test_images_do_not_depend_on_outliers(straight):
    none, *others = [DistilledSet.load(straight/run_name(e)/"distilled.safetensors")
                     for e in DM.values()]
    assert all(torch.equal(none.images, syn.images) for syn in others)
    assert not torch.equal(others[0].outliers, others[1].outliers)


def test_pixels_out_of_bounds_are_an_error_and_an_older_checkpoint_stays(tmp_path):
    "The third iteration fails, and the checkpoint is that of the second."
    plain, count, file = dm.match_embeddings, itertools.count(1), tmp_path/"checkpoint"
    def spoilt(*args):
        distance, gradient = plain(*args)
        return distance, gradient * (1 if next(count) <= 2 * MATCHES else torch.nan)
    message = "pixels are no longer finite after iteration 3; try a smaller lr_img than 1.0"
    with patch.object(dm, "match_embeddings", spoilt):
        with pytest.raises(FloatingPointError, match=message):
            distill(EXP, device="cpu", checkpoint=file, every=0, progress=False)
    state, _ = load_checkpoint(file, EXP, "cpu")
    assert state.iteration == 2 and state.images.isfinite().all()


# --- coresets

@pytest.mark.parametrize("fields", [dict(method="kmeans"), dict(method="herding"),
                                    dict(method="herding", features="network")], ids=str)
def test_coresets_give_the_same_bytes_in_any_process(ask, tmp_path, fields):
    exp = Experiment(outliers="oe", **fields, **{**SMALL, "ipc": 2})
    assert ask(exp, store=tmp_path/"one", seed=1) == [0]
    assert ask(exp, store=tmp_path/"two", processes=2) == [0, 0]
    sets = [tmp_path/n/run_name(exp)/"distilled.safetensors" for n in ("one", "two")]
    assert sets[0].read_bytes() == sets[1].read_bytes()


# --- methods of one's own

HALVES = '''
from dataclasses import dataclass, field
import torch
import trustdd
from trustdd.core.experiment import Settings

@dataclass(frozen=True)
class HalvesSettings(Settings):
    "Its only setting."
    iterations:int = 4 # how often an image is halved

@dataclass
class Halves:
    images:torch.Tensor
    outliers:torch.Tensor
    iteration:int = 0
    losses:list = field(default_factory=list)
    seconds:float = 0.

@trustdd.method("halves")
class Halving(trustdd.Method):
    "Random images, each iteration half as bright."
    state, settings = Halves, HalvesSettings

    def start(self, exp, dataset, pool=None, device="cpu"):
        rows = [dataset.of_class(c)[:exp.ipc] for c in range(dataset.n_classes)]
        images = dataset.normalise(dataset.images[torch.cat(rows)], device)
        return Halves(images, images[:0].clone())

    def step(self, exp, state, context):
        state.images /= 2
        state.iteration += 1
        state.losses.append((float(state.images.square().mean()), 0.))
'''


@pytest.fixture
def halves():
    "The method above, registered for the time of a test."
    methods.load_methods()
    with patch.dict(methods._methods), patch.dict(experiment._registered):
        exec(HALVES, dict(__name__="halves"))
        yield Experiment(method="halves", **SMALL)


def test_a_method_of_ones_own_works_through_the_store(halves, tmp_path):
    run = load_or_run(halves, tmp_path, "cpu", progress=False)
    digits = load_dataset("digits")
    first = torch.cat([digits.of_class(c)[:1] for c in range(10)])
    assert torch.equal(run.distilled.images, digits.normalise(digits.images[first]) / 16)
    assert len(run.report.accuracy) == 1
    assert [line["iteration"] for line in lines(run.folder/"log.jsonl")] == [1, 2, 3, 4]
    assert run_name(replace(halves, iterations=3)) != run_name(halves)


def test_a_method_of_ones_own_is_stopped_and_resumed(halves, tmp_path):
    straight = load_or_run(halves, tmp_path/"straight", "cpu", progress=False)
    method = methods.find_method("halves")
    step = type(method).step
    def interrupted(self, exp, state, context):
        if state.iteration == 2: raise KeyboardInterrupt
        step(self, exp, state, context)
    with patch.object(type(method), "step", interrupted), pytest.raises(KeyboardInterrupt):
        load_or_run(halves, tmp_path/"again", "cpu", progress=False, every=0)
    checkpoint = tmp_path/"again"/run_name(halves)/"checkpoint.safetensors"
    assert load_checkpoint(checkpoint, halves, "cpu")[0].iteration == 2
    load_or_run(halves, tmp_path/"again", "cpu", progress=False)
    assert straight.folder.exists() and same(tmp_path/"again", tmp_path/"straight", halves)


@pytest.mark.parametrize("wrong, said", [
    (dict(iterations=3, outer=2), "outer = 2 with method = 'halves': it belongs to dc, dsa"),
    (dict(loops=2), "field = 'loops' is unknown"),
])
def test_its_fields_are_checked_like_all_others(halves, wrong, said):
    with pytest.raises(ValueError, match=said): replace(halves, **wrong)


# --- methods of another package

@pytest.fixture
def package(tmp_path):
    "`package(source, *words)` distils by a command, beside a package that registers methods."
    folder = tmp_path/"site"
    about = folder/"their_package-1.0.dist-info"
    about.mkdir(parents=True)
    (about/"METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about/"entry_points.txt").write_text("[trustdd.methods]\ntheir = their_methods\n")
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    words = "distill --dataset digits --preset smoke --ipc 1 --device cpu --runs".split()
    def run(source, *more):
        (folder/"their_methods.py").write_text(source)
        command = [sys.executable, "-m", "trustdd", *words, tmp_path/"runs", *more]
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    return run


def told(done):
    "The lines on the error stream, without those of progress bars."
    rows = [line.split("\r")[-1].strip() for line in done.stderr.splitlines()]
    return [row for row in rows if row and "it/s" not in row and "%|" not in row]


def bars(text):
    "The last row of each progress bar of an error stream, by its title."
    rows = [row.strip() for row in text.replace("\r", "\n").splitlines() if "%|" in row]
    return dict(row.split(": ", 1) for row in rows)


def test_a_bar_names_the_side_that_is_distilled_and_shows_its_loss(tmp_path, capfd):
    exp = Experiment(method="dsa", outliers="poe", iterations=2, **SMALL)
    run = load_or_run(exp, tmp_path, "cpu")
    found, last = bars(capfd.readouterr().err), run.losses[-1]
    images, outliers = "digits dsa ipc 1 seed 0, images", "digits dsa poe ipc 1 seed 0, outliers"
    assert f" loss={last['loss']:.3g}]" in found[images] and "2/2" in found[images]
    assert f" loss_outliers={last['loss_outliers']:.3g}]" in found[outliers]
    assert " loss=" not in found[outliers]
    assert "3/3" in found["testing"] # the test images and two OOD sets


def test_a_bar_counts_the_test_sets_of_evaluate(tmp_path, capfd):
    syn = distill(Experiment(method="random", **SMALL), device="cpu", progress=False)
    syn.save(tmp_path/"set.safetensors")
    assert main(["evaluate", str(tmp_path/"set.safetensors"), "--device", "cpu"]) == 0
    assert "3/3" in bars(capfd.readouterr().err)["testing"]
    nets = train(syn, n_nets=1, device="cpu", progress=False)
    evaluate(nets, syn, device="cpu", progress=False)
    assert not capfd.readouterr().err


def test_a_bar_of_both_sides_shows_both_losses(capfd):
    for exp, names in ((EXP, ["loss", "loss_outliers"]), (DM["none"], ["loss"])):
        distill(exp, device="cpu")
        row = bars(capfd.readouterr().err)[f"digits dm {exp.outliers} ipc 1 seed 0"]
        assert re.findall(r"(\w+)=", row) == names


def test_a_dry_run_says_what_it_times_and_trains_no_experts(tmp_path, capfd):
    exp = Experiment(method="mtt", **SMALL)
    found = estimate(exp, tmp_path, "cpu")
    stages = [stage.name for stage in found.stages]
    assert stages == [f"training {exp.experts} experts", "distilling", "training 1 networks"]
    said = capfd.readouterr()
    assert said.err.splitlines() == [f"timing: {stage} …" for stage in stages] and not said.out
    assert not any(tmp_path.iterdir())


def test_a_method_of_another_package_is_a_choice_of_the_command(package, tmp_path):
    done = package(HALVES, "--method", "halves", "--iterations", "3")
    assert done.returncode == 0, done.stderr
    log, = (tmp_path/"runs").rglob("log.jsonl")
    assert len(lines(log)) == 3


def test_a_package_that_cannot_be_imported_is_one_line_and_costs_its_own_methods_only(package):
    done = package("import nothing_of_this_name\n", "--method", "dm", "--iterations", "1")
    assert done.returncode == 0, done.stderr
    about = [line for line in told(done) if "their_methods" in line]
    assert len(about) == 1 and "No module named 'nothing_of_this_name'" in about[0]
    assert "Traceback" not in done.stderr


def test_its_methods_are_then_unknown(package):
    done = package("1 / 0\n", "--method", "halves")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = told(done)[-1]
    assert last.startswith("trustdd: ") and "'halves' is unknown" in last and "dm" in last


@pytest.mark.parametrize("broken, said, status", [
    (("state.images /= 2", "state.pixels /= 2"), "'Halves' object has no attribute 'pixels'", 1),
    (("state.images /= 2", "state.images /= 0"), "are no longer finite after iteration 1", 1),
    (('@trustdd.method("halves")', '@trustdd.method("dsa")'), "'halves' is unknown", 2),
])
def test_a_method_with_an_error_ends_in_one_line(package, broken, said, status):
    done = package(HALVES.replace(*broken), "--method", "halves")
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    last = [line for line in told(done) if line.startswith("trustdd: ")]
    assert len(last) == 1 and said in last[0]


# --- all images, with outliers

def test_networks_learn_from_all_images_and_outliers(tmp_path):
    "What no distilled set is behind has outliers, too, and is the same after an interruption."
    fields = dict(SMALL, method="full", epochs=3, batch_eval=64)
    runs = {o: load_or_run(Experiment(outliers=o, **fields), tmp_path/"one", "cpu", progress=False)
            for o in ("none", "oe", "poe")}
    scores = {o: run.logits.values["in"] for o, run in runs.items()}
    assert not torch.equal(scores["none"], scores["oe"]) and not torch.equal(scores["oe"], scores["poe"])
    assert all(r.report.accuracy_mean > 30 for r in runs.values())
    begun, batches = itertools.count(), training.pool_batches
    def interrupted(*args):
        if next(begun) == 2: raise KeyboardInterrupt
        return batches(*args)
    exp = runs["poe"].exp
    with patch.object(training, "pool_batches", interrupted), pytest.raises(KeyboardInterrupt):
        load_or_run(exp, tmp_path/"two", "cpu", progress=False, every=0)
    again = load_or_run(exp, tmp_path/"two", "cpu", progress=False)
    assert torch.equal(again.logits.values["in"], scores["poe"])
    assert "training 1 networks" in str(estimate(replace(exp, epochs=4), tmp_path/"one", "cpu"))
