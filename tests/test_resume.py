"A run may be killed at any moment: started again, it ends with the same bytes. Two that ask for one run share it. Chance and clock decide nothing."
import itertools, json, os, random, re, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import server
from trustdd.distillation.buffers import buffer_name
from trustdd.reproduction.cli import main
from trustdd.core.experiment import Experiment, run_name, to_dict
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill, load_checkpoint
from trustdd.reproduction.runs import load_or_run, run_all

ROOT = Path(__file__).resolve().parent.parent
EXP = Experiment(dataset="digits", outliers="poe", preset="smoke", ipc=1, outer=2, inner=1, iterations=4, n_nets=1, epochs=3, n_test=20, ood=("gaussian", "skimage-text"))
MTT = Experiment(dataset="digits", method="mtt", outliers="poe", preset="smoke", ipc=1, experts=2, train_epochs=3, expert_epochs=2, max_start_epoch=2, iterations=4, n_nets=1, epochs=3, n_test=20, ood=("gaussian", "skimage-text"))
SIDED = replace(EXP, outer=1) # its images and outliers are distilled one side after the other
WATCHED = replace(MTT, holdout=0.2, watch=(0, 2, 4), ood=())

# A process that reads requests, one line each, and forks a child for every run asked for: torch is imported once, and a fork can be killed.
# "die" names a function and the number of the call in which the child sends itself SIGKILL ("torn": with half of its data written);
# "mark" is a file with a line for each computation, "experts" one with a line for each time that an expert was begun or gone on with.
SERVER = """
import itertools, json, os, signal, sys, time, torch
from importlib import import_module
import trustdd.distillation.buffers, trustdd.distillation.distillation, trustdd.reproduction.runs
from trustdd.core.experiment import Experiment
from trustdd.data.catalog import load_aux, load_dataset, load_ood
from trustdd.data.suites import default_aux

def deadly(holder, name, number, pause=0, torn=False):
    function, count = getattr(holder, name), itertools.count(1)
    def call(*a, **kw):
        if next(count) == number:
            if torn: function(a[0], a[1][:len(a[1]) // 2])
            time.sleep(pause); os.kill(os.getpid(), signal.SIGKILL)
        return function(*a, **kw)
    setattr(holder, name, call)

def child(exp, store, die=None, mark=None, threads=1, pause=0, seed=0, wait_for=None, experts=None):
    torch.set_num_threads(threads); torch.manual_seed(seed)
    ends = time.monotonic() + 300
    while wait_for and not os.path.exists(wait_for): assert time.monotonic() < ends, f"there is no {wait_for}"; time.sleep(0.01)
    if mark:
        compute = trustdd.reproduction.runs.compute
        def marked(*a, **kw):
            with open(mark, "a") as f: f.write(f"{os.getpid()}\\n")
            return compute(*a, **kw)
        trustdd.reproduction.runs.compute = marked
    if experts:
        train = trustdd.distillation.buffers._train_expert
        def counted(exp, k, *a, **kw):
            with open(experts, "a") as f: f.write(f"{k}\\n")
            return train(exp, k, *a, **kw)
        trustdd.distillation.buffers._train_expert = counted
    if die:
        holder = os if die[0] == "os" else import_module("trustdd." + ("distillation.trajectories" if die[0] == "torn" else die[0]))
        deadly(holder, *die[1:], pause, die[0] == "torn")
    trustdd.reproduction.runs.load_or_run(Experiment(**exp), store, "cpu", progress=False, every=0)

trustdd.distillation.distillation.commit = lambda: "a commit"
import pandas, sklearn.metrics, torch._dynamo, torch.utils.flop_counter # what a child would load
shape = load_dataset("digits").shape
for name in ("gaussian", "skimage-text"): load_ood(name, shape)
load_aux(default_aux("digits"), shape)

for line in sys.stdin:
    pids = []
    for request in json.loads(line):
        pids.append(os.fork())
        if not pids[-1]:
            status = 1
            try: child(**request); status = 0
            except BaseException: sys.excepthook(*sys.exc_info())
            finally: sys.stderr.flush(); os._exit(status)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)
"""
pytestmark = [pytest.mark.usefixtures("one_commit"), pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")]


@pytest.fixture(scope="module")
def ask():
    "`ask(request, ...)` runs the requests side by side in processes of their own and returns their exit statuses."
    plain = lambda v: str(v) if isinstance(v, Path) else to_dict(v) if isinstance(v, Experiment) else v
    with server(SERVER, timeout=20) as answer:
        yield lambda *requests: answer([dict(dict(exp=to_dict(EXP)), **{k: plain(v) for k, v in r.items()}) for r in requests])


@pytest.fixture(scope="module")
def straight(ask, tmp_path_factory):
    "The folder of an uninterrupted run."
    store = tmp_path_factory.mktemp("straight")
    assert ask(dict(store=store)) == [0]
    return store/run_name(EXP)


def numbers(folder):
    "All that a report says but how long it took and where it was made."
    return {k: v for k, v in json.loads((folder/"report.json").read_text()).items() if k not in ("runs", "checksum")}


def timeless(log):
    "The lines of a log, without the seconds that something took."
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "checksum")} for line in log.read_text().splitlines()]


def names(folder): return sorted(p.name for p in folder.iterdir())


def same(folder, other):
    "Two runs gave the same: to the byte, but for the seconds kept in log, report and logits."
    for name in ("config.json", "distilled.safetensors", "ood.csv"): assert (folder/name).read_bytes() == (other/name).read_bytes(), name
    assert timeless(folder/"log.jsonl") == timeless(other/"log.jsonl")
    assert numbers(folder) == numbers(other)
    assert names(folder) == names(other)


# Every file is written beside, forced to the disk (fsync) and renamed. In order: a probe without a name, the configuration,
# four checkpoints, the losses, the set, the network after each epoch, the logits, the table, the report. A matching step is one call for each class and side.
MATCHES = 2 * 10 * EXP.outer
FILES = ("config", "checkpoint 1", "checkpoint 2", "checkpoint 3", "checkpoint 4", "log", "distilled", "network 1", "network 2", "network 3", "logits", "scores", "ood", "report")
MOMENTS = {
    "in the probe": ("os", "fsync", 1),
    **{f"before {name} is on the disk": ("os", "fsync", FILES.index(name) + 2) for name in ("config", "checkpoint 1", "distilled", "report")},
    **{f"before {name} is renamed": ("os", "replace", FILES.index(name) + 1) for name in FILES if name not in ("checkpoint 3", "network 1")},
    "in the first iteration": ("distillation.gradient_matching", "match", 7),
    "in the third iteration": ("distillation.gradient_matching", "match", 2 * MATCHES + 7),
    "with the set there": ("reproduction.runs", "train", 1),
    "in training": ("networks.training", "_step_size", 2),
    "in judging": ("evaluation.logits", "predict", 2),
}

@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(ask, straight, tmp_path, moment):
    folder = tmp_path/run_name(EXP)
    assert ask(dict(store=tmp_path, die=MOMENTS[moment])) == [-signal.SIGKILL]
    assert not (folder/"report.json").exists()
    for p in folder.glob("[a-z]*"): # whatever has its name is whole
        if p.suffix == ".json": json.loads(p.read_text())
        if p.name == "distilled.safetensors": DistilledSet.load(p)
        if p.name == "checkpoint.safetensors": load_checkpoint(p, EXP, "cpu")
    assert ask(dict(store=tmp_path, seed=1)) == [0]
    same(folder, straight)


def test_killed_again_and_again(ask, straight, tmp_path):
    "Each start gets a little further than the one before."
    for number in itertools.count(3):
        status, = ask(dict(store=tmp_path, die=("os", "replace", number)))
        if status == 0: break
        assert status == -signal.SIGKILL and number < 16
    assert number > 5
    same(tmp_path/run_name(EXP), straight)


def test_work_done_before_a_kill_is_not_done_again(ask, straight, tmp_path):
    "Killed after three of four iterations it has one left: it never gets to the mine in the second."
    assert ask(dict(store=tmp_path, die=("distillation.gradient_matching", "match", 3 * MATCHES + 1))) == [-signal.SIGKILL]
    assert load_checkpoint(tmp_path/run_name(EXP)/"checkpoint.safetensors", EXP, "cpu")[0].iteration == 3
    assert ask(dict(store=tmp_path, die=("distillation.gradient_matching", "match", MATCHES + 1))) == [0]
    same(tmp_path/run_name(EXP), straight)


def test_as_many_threads_as_it_began_with(ask, straight, tmp_path):
    "Sums in another order round differently, so the number of threads is part of the checkpoint."
    assert ask(dict(store=tmp_path, die=("os", "replace", 4))) == [-signal.SIGKILL]
    assert ask(dict(store=tmp_path, threads=2)) == [0]
    assert (tmp_path/run_name(EXP)/"distilled.safetensors").read_bytes() == (straight/"distilled.safetensors").read_bytes()


def test_in_two_halves(tmp_path):
    "Stopped in the middle and continued in the same process, with other random numbers about."
    class Enough(Exception): pass
    def stop(state):
        if state.iteration == 3: raise Enough # before the checkpoint of this iteration is written
    torch.manual_seed(1)
    with pytest.raises(Enough): distill(EXP, device="cpu", checkpoint=tmp_path/"c", every=0, on_step=stop, progress=False)
    assert load_checkpoint(tmp_path/"c", EXP, "cpu")[0].iteration == 2
    torch.manual_seed(2)
    distill(EXP, device="cpu", checkpoint=tmp_path/"c", every=0, progress=False).save(tmp_path/"halves")
    distill(EXP, device="cpu", progress=False).save(tmp_path/"whole")
    assert (tmp_path/"halves").read_bytes() == (tmp_path/"whole").read_bytes()


def test_interrupted_by_the_user(tmp_path, capfd, monkeypatch):
    def interrupt(*a, **kw): raise KeyboardInterrupt
    words = f"distill --preset smoke --ipc 1 --device cpu --runs {tmp_path}".split()
    with monkeypatch.context() as m:
        m.setattr("trustdd.distillation.gradient_matching._matching_step", interrupt)
        assert main(words) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "trustdd: interrupted; run the same command again to continue"
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", interrupt)
        assert main(words) == 130
    assert not list(tmp_path.rglob("*.part"))
    assert main(words) == 0


def test_killed_from_a_shell(tmp_path):
    "The installed command, killed while its bar moves."
    script = Path(sys.executable).with_name("trustdd")
    start = [str(script)] if script.exists() else [sys.executable, "-c", "import sys; from trustdd.reproduction.cli import main; sys.exit(main())"]
    words = "distill --dataset digits --outliers oe --preset smoke --ipc 1 --iterations 30 --device cpu --runs".split()
    exp = Experiment(dataset="digits", outliers="oe", preset="smoke", ipc=1, iterations=30)
    run = subprocess.Popen([*start, *words, str(tmp_path/"killed")], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    seen = b""
    while not re.search(rb" [1-9]\d*/30 ", seen):
        byte = run.stderr.read(1)
        assert byte, seen.decode()
        seen += byte
    run.kill()
    assert run.wait(timeout=20) == -signal.SIGKILL
    file = Path(run_name(exp), "distilled.safetensors")
    assert (tmp_path/"killed"/file).with_name("config.json").exists() and not (tmp_path/"killed"/file).exists()
    for store in ("killed", "straight"): assert main([*words, str(tmp_path/store)]) == 0
    assert (tmp_path/"killed"/file).read_bytes() == (tmp_path/"straight"/file).read_bytes()


# --- two at once

def test_two_that_ask_for_one_run_compute_it_once(ask, straight, tmp_path):
    mark = tmp_path/"mark"
    assert ask(*(dict(store=tmp_path/"store", mark=mark) for _ in range(3))) == [0, 0, 0]
    assert len(mark.read_text().split()) == 1
    same(tmp_path/"store"/run_name(EXP), straight)


def test_who_waits_takes_over_from_who_is_killed(ask, straight, tmp_path):
    "The first process has the folder and is killed while the second waits for it."
    mark, store = tmp_path/"mark", tmp_path/"store"
    first = dict(store=store, mark=mark, die=("distillation.gradient_matching", "match", MATCHES + 1), pause=0.5)
    assert ask(first, dict(store=store, mark=mark, wait_for=mark)) == [-signal.SIGKILL, 0]
    assert len(set(mark.read_text().split())) == 2
    same(store/run_name(EXP), straight)


def test_asked_again_nothing_is_computed(straight, monkeypatch):
    def never(*a, **kw): raise AssertionError("computed again")
    for name in ("runs.compute", "runs.train", "runs.prepared", "sides.distill"): monkeypatch.setattr(f"trustdd.reproduction.{name}", never)
    times = {p: p.stat().st_mtime_ns for p in straight.iterdir()}
    store = straight.parents[len(Path(run_name(EXP)).parts) - 1]
    run, = run_all([EXP], store)
    assert load_or_run(EXP, store).report.accuracy == run.report.accuracy and len(run.losses) == EXP.iterations
    assert times == {p: p.stat().st_mtime_ns for p in straight.iterdir()}


# --- chance and clock

def test_neither_chance_nor_clock(straight, tmp_path, monkeypatch):
    "Other states of every global generator, and a clock that leaps, change no byte."
    ticks = itertools.count(0, 1000)
    with monkeypatch.context() as m:
        for name in ("time", "monotonic", "perf_counter"): m.setattr(time, name, lambda: float(next(ticks)))
        torch.manual_seed(12345); np.random.seed(12345); random.seed(12345)
        run = load_or_run(EXP, tmp_path, "cpu", progress=False)
    same(run.folder, straight)


def test_the_order_of_other_work_changes_nothing(straight, tmp_path):
    "Another experiment before it in the same process leaves no trace."
    load_or_run(replace(EXP, seed=5, outliers="none", outliers_per_slot=0), tmp_path, "cpu", progress=False)
    same(load_or_run(EXP, tmp_path, "cpu", progress=False).folder, straight)


@pytest.mark.parametrize("fields", [dict(method="dc", strategy="none", epochs=2), dict(outliers="oe"), dict(outliers="none", outliers_per_slot=0), dict(method="random"),
                                    dict(norm="batch"), dict(init="noise"), dict(metric="mse")], ids=str)
def test_two_fresh_runs_give_the_same_bytes(tmp_path, fields):
    exp = replace(replace(EXP, iterations=1), **fields)
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        distill(exp, device="cpu", progress=False).save(tmp_path/name)
    assert (tmp_path/"a").read_bytes() == (tmp_path/"b").read_bytes()


# --- each side once

@pytest.fixture(scope="module")
def straight_sided(ask, tmp_path_factory):
    "The store of an uninterrupted run whose sides are distilled one after the other."
    store = tmp_path_factory.mktemp("sided")
    assert ask(dict(exp=SIDED, store=store)) == [0]
    return store


def same_sided(store, other):
    same(store/run_name(SIDED), other/run_name(SIDED))
    assert names(store/"sides") == names(other/"sides")
    for folder in (store/"sides").iterdir(): assert names(folder) == [".lock", "side.safetensors"] # no checkpoint is left


SIDED_MOMENTS = { # renamed are the configuration, then for each side four checkpoints and the side, then the log
    "in the first side": ("distillation.gradient_matching", "match", 27),
    "before the first side is renamed": ("os", "replace", 6),
    "before its checkpoint is removed": ("os", "replace", 7),
    "in the second side": ("distillation.gradient_matching", "match", 67),
    "before the second side is renamed": ("os", "replace", 11),
    "before the log is renamed": ("os", "replace", 12),
    "before the set is renamed": ("os", "replace", 13),
}

@pytest.mark.parametrize("moment", SIDED_MOMENTS)
def test_killed_in_a_side(ask, straight_sided, tmp_path, moment):
    assert ask(dict(exp=SIDED, store=tmp_path, die=SIDED_MOMENTS[moment])) == [-signal.SIGKILL]
    assert not (tmp_path/run_name(SIDED)/"distilled.safetensors").exists()
    assert ask(dict(exp=SIDED, store=tmp_path, seed=1, threads=2)) == [0]
    same_sided(tmp_path, straight_sided)


def test_sides_make_the_set_that_is_made_together(straight_sided, tmp_path):
    distill(SIDED, device="cpu", progress=False).save(tmp_path/"together")
    assert (tmp_path/"together").read_bytes() == (straight_sided/run_name(SIDED)/"distilled.safetensors").read_bytes()


def test_three_runs_that_share_a_side_distil_it_once(ask, straight_sided, tmp_path):
    "Without outliers, with them, and with another weight of them, side by side: images and outliers once each."
    exps = [SIDED, replace(SIDED, outliers="none", outliers_per_slot=0), replace(SIDED, lam=0.9)]
    assert ask(*(dict(exp=e, store=tmp_path) for e in exps)) == [0, 0, 0]
    same_sided(tmp_path, straight_sided)
    images = [DistilledSet.load(tmp_path/run_name(e)/"distilled.safetensors").images for e in exps]
    assert all(torch.equal(images[0], x) for x in images)


# --- trajectory matching: experts, which several runs share, and then the run

@pytest.fixture(scope="module")
def straight_mtt(ask, tmp_path_factory):
    "The store of an uninterrupted run with its experts."
    store = tmp_path_factory.mktemp("mtt")
    assert ask(dict(exp=MTT, store=store)) == [0]
    return store


def same_experts(store, other, exp=MTT):
    "The same experts to the byte, but for the seconds in their logs, and nothing else in their folder."
    folder, other = store/buffer_name(exp), other/buffer_name(exp)
    assert names(folder) == names(other)
    for p in folder.iterdir():
        if p.suffix == ".jsonl": assert timeless(p) == timeless(other/p.name), p.name
        else: assert p.read_bytes() == (other/p.name).read_bytes(), p.name


def same_all(store, other, exp=MTT):
    same_experts(store, other, exp)
    same(store/run_name(exp), other/run_name(exp))


# Renamed in order: the configuration, the buffer's own, and for each expert its head, its empty log and at last the expert itself; then
# checkpoints, log, set, network, logits, table and report. Forced to the disk besides: two probes, and each row and line of an expert. An expert has
# a row and a line before training and for each epoch. A student of N steps takes N - 1 gradients forwards and N backwards in each iteration.
MTT_FILES = ("config", "buffer", "head 0", "log 0", "expert 0", "head 1", "log 1", "expert 1", "checkpoint 1", "checkpoint 2", "checkpoint 3", "checkpoint 4", "log", "distilled", "network 1", "network 2", "network 3", "logits", "scores", "ood", "report")
GRADIENTS = 2 * MTT.syn_steps - 1
MTT_MOMENTS = {
    **{f"before {name} is renamed": ("os", "replace", MTT_FILES.index(name) + 1) for name in (*MTT_FILES[1:9], "distilled")},
    "with half of the first row": ("torn", "_append", 1),
    "with half of a row": ("torn", "_append", 5),
    "between a row and its line": ("distillation.trajectories", "_append", 6),
    "with half of a line": ("torn", "_append", 6),
    "between two epochs": ("distillation.buffers", "expert_batches", 3),
    "with half of the last row": ("torn", "_append", 7),
    "with half of the last line": ("torn", "_append", 8),
    "between two experts": ("distillation.buffers", "_train_expert", 2),
    "in the second expert": ("torn", "_append", 13),
    "in the third iteration, forwards": ("distillation.trajectory_gradient", "_gradient", 2 * GRADIENTS + 2),
    "in the third iteration, backwards": ("distillation.trajectory_gradient", "_gradient", 3 * GRADIENTS - 1),
    "between a checkpoint and the next iteration": ("distillation.trajectory_matching", "_iterate", 4),
    "between an iteration and its checkpoint": ("distillation.distillation", "save_checkpoint", 3),
    "in training": ("networks.training", "_step_size", 2),
    "in judging": ("evaluation.logits", "predict", 2),
}

@pytest.mark.parametrize("moment", MTT_MOMENTS)
def test_mtt_killed_and_started_again(ask, straight_mtt, tmp_path, moment):
    folder, experts = tmp_path/run_name(MTT), tmp_path/buffer_name(MTT)
    assert ask(dict(exp=MTT, store=tmp_path, die=MTT_MOMENTS[moment])) == [-signal.SIGKILL]
    assert not (folder/"report.json").exists()
    for p in experts.glob("expert*.safetensors"): assert p.read_bytes() == (straight_mtt/buffer_name(MTT)/p.name).read_bytes() # whole
    if (folder/"checkpoint.safetensors").exists(): load_checkpoint(folder/"checkpoint.safetensors", MTT, "cpu")
    assert ask(dict(exp=MTT, store=tmp_path, seed=1)) == [0]
    same_all(tmp_path, straight_mtt)


@pytest.mark.parametrize("die", [("os", "fsync", 9), ("torn", "_append", 3), ("distillation.trajectory_gradient", "_gradient", GRADIENTS + 2)], ids=str)
def test_mtt_killed_again_and_again(ask, straight_mtt, tmp_path, die):
    "Each start gets a little further than the one before: a row or an iteration."
    for starts in range(1, 30):
        status, = ask(dict(exp=MTT, store=tmp_path, die=die, seed=starts))
        if status == 0: break
        assert status == -signal.SIGKILL
    assert status == 0 and starts > 3
    same_all(tmp_path, straight_mtt)


def test_epochs_done_before_a_kill_are_not_done_again(ask, straight_mtt, tmp_path):
    "Killed in the fifth of six epochs, two are left: it never gets to the mine in the third."
    assert ask(dict(exp=MTT, store=tmp_path, die=("distillation.buffers", "expert_batches", 5))) == [-signal.SIGKILL]
    assert ask(dict(exp=MTT, store=tmp_path, die=("distillation.buffers", "expert_batches", 3))) == [0]
    same_all(tmp_path, straight_mtt)


def test_mtt_iterations_done_before_a_kill_are_not_done_again(ask, straight_mtt, tmp_path):
    assert ask(dict(exp=MTT, store=tmp_path, die=("distillation.trajectory_matching", "_iterate", 4))) == [-signal.SIGKILL]
    assert load_checkpoint(tmp_path/run_name(MTT)/"checkpoint.safetensors", MTT, "cpu")[0].iteration == 3
    assert ask(dict(exp=MTT, store=tmp_path, die=("distillation.trajectory_matching", "_iterate", 2))) == [0]
    same_all(tmp_path, straight_mtt)


def test_experts_do_not_depend_on_threads(ask, straight_mtt, tmp_path):
    "An expert is trained on one thread, and so may be begun by one process and finished by another."
    assert ask(dict(exp=MTT, store=tmp_path, threads=2, die=("torn", "_append", 5))) == [-signal.SIGKILL]
    assert ask(dict(exp=MTT, store=tmp_path, threads=1)) == [0]
    same_all(tmp_path, straight_mtt)


def counts(file): return sorted(file.read_text().split())


def test_three_that_ask_for_one_mtt_run_train_each_expert_once(ask, straight_mtt, tmp_path):
    mark, experts = tmp_path/"mark", tmp_path/"experts"
    assert ask(*(dict(exp=MTT, store=tmp_path/"store", mark=mark, experts=experts) for _ in range(3))) == [0, 0, 0]
    assert len(mark.read_text().split()) == 1 and counts(experts) == ["0", "1"]
    same_all(tmp_path/"store", straight_mtt)


def test_runs_that_share_experts_train_each_once(ask, straight_mtt, tmp_path):
    mark, experts = tmp_path/"mark", tmp_path/"experts"
    others = [replace(MTT, seed=1), replace(MTT, ipc=2, outliers_per_slot=2, syn_steps=2)]
    assert len({buffer_name(e) for e in (MTT, *others)}) == 1
    assert ask(*(dict(exp=e, store=tmp_path/"store", mark=mark, experts=experts) for e in (*others, MTT))) == [0, 0, 0]
    assert len(mark.read_text().split()) == 3 and counts(experts) == ["0", "1"]
    same_all(tmp_path/"store", straight_mtt)
    for e in others: assert (tmp_path/"store"/run_name(e)/"report.json").exists()


def test_who_waits_for_an_expert_takes_over_from_who_is_killed(ask, straight_mtt, tmp_path):
    "The first is killed in an expert for which the second, that asks for another run, waits; its epochs are kept."
    experts, store = tmp_path/"experts", tmp_path/"store"
    first = dict(exp=replace(MTT, seed=1), store=store, experts=experts, die=("torn", "_append", 5), pause=0.5)
    assert ask(first, dict(exp=MTT, store=store, experts=experts, wait_for=experts, die=("distillation.buffers", "expert_batches", 6))) == [-signal.SIGKILL, 0]
    assert counts(experts) == ["0", "0", "1"] # five of six epochs were left for the second
    same_all(store, straight_mtt)


RUN_ALL = """
import json, sys
from trustdd.core.experiment import Experiment
from trustdd.reproduction.runs import run_all
if __name__ == "__main__":
    exps = [Experiment(**e) for e in json.loads(sys.argv[1])]
    runs = run_all(exps, sys.argv[2], workers=2, device="cpu", progress=False)
    assert [r.exp for r in runs] == exps and all((r.folder/"report.json").exists() for r in runs)
    assert [[l["iteration"] for l in r.losses] for r in runs] == [[1, 2, 3, 4]] * 2
"""


def test_workers_train_each_expert_once(straight_mtt, tmp_path):
    "Two processes of `run_all`, each with its own run; what they rename is written down."
    mark = tmp_path/"mark"
    (tmp_path/"sitecustomize.py").write_text(f"import os; replace = os.replace\ndef noted(a, b):\n    replace(a, b)\n    with open({str(mark)!r}, 'a') as f: f.write(os.path.basename(b) + '\\n')\nos.replace = noted\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    (tmp_path/"both.py").write_text(RUN_ALL) # a process of its own, since workers inherit the environment of the first
    exps = json.dumps([to_dict(MTT), to_dict(replace(MTT, seed=1))])
    subprocess.run([sys.executable, tmp_path/"both.py", exps, tmp_path/"store"], env=env, check=True)
    renamed = mark.read_text().split()
    for k in range(MTT.experts): # begun once and finished once
        assert [renamed.count(f"expert00{k}.{s}") for s in ("part", "jsonl", "safetensors")] == [1, 1, 1]
    same_experts(tmp_path/"store", straight_mtt)


def test_asked_again_no_expert_is_touched(straight_mtt, monkeypatch):
    "A finished run does without its experts."
    def never(*a, **kw): raise AssertionError("computed again")
    for name in ("reproduction.runs.compute", "reproduction.jobs.make_buffer", "distillation.buffers._train_expert", "reproduction.runs.prepared"): monkeypatch.setattr(f"trustdd.{name}", never)
    times = {p: p.stat().st_mtime_ns for p in straight_mtt.rglob("*")}
    assert load_or_run(MTT, straight_mtt).distilled.lr > 0
    assert times == {p: p.stat().st_mtime_ns for p in straight_mtt.rglob("*")}


def test_mtt_neither_chance_nor_clock(straight_mtt, tmp_path, monkeypatch):
    ticks = itertools.count(0, 1000)
    with monkeypatch.context() as m:
        for name in ("time", "monotonic", "perf_counter"): m.setattr(time, name, lambda: float(next(ticks)))
        torch.manual_seed(12345); np.random.seed(12345); random.seed(12345)
        load_or_run(MTT, tmp_path, "cpu", progress=False)
    same_all(tmp_path, straight_mtt)


# --- watched

@pytest.fixture(scope="module")
def straight_watched(ask, tmp_path_factory):
    store = tmp_path_factory.mktemp("watched")
    assert ask(dict(exp=WATCHED, store=store)) == [0]
    assert [l["iteration"] for l in timeless(store/run_name(WATCHED)/"dynamics.jsonl")] == [0, 2, 4]
    return store


LOOKS = { # after the experts the files are: line 0, checkpoint 1, line 2, checkpoint 2, …
    "in the look before the first iteration": ("networks.training", "_step_size", 2),
    "before its line is renamed": ("os", "replace", 2),
    "in the second look": ("networks.training", "_step_size", WATCHED.epochs + 2),
    "in judging for the second look": ("evaluation.logits", "predict", 4),
    "between the second look and its checkpoint": ("distillation.distillation", "save_checkpoint", 2),
    "in the last look": ("networks.training", "_step_size", 2 * WATCHED.epochs + 2),
    "between the last look and its checkpoint": ("distillation.distillation", "save_checkpoint", 4),
    "after the last checkpoint": ("reproduction.runs", "_log", 1),
}

@pytest.mark.parametrize("moment", LOOKS)
def test_killed_while_it_is_watched(ask, straight_watched, tmp_path, moment):
    assert ask(dict(exp=WATCHED, store=tmp_path, die=LOOKS[moment])) == [-signal.SIGKILL]
    assert ask(dict(exp=WATCHED, store=tmp_path, seed=1)) == [0]
    same_all(tmp_path, straight_watched, WATCHED)
    assert (tmp_path/run_name(WATCHED)/"dynamics.jsonl").read_bytes() == (straight_watched/run_name(WATCHED)/"dynamics.jsonl").read_bytes()
