"Several processes make what one makes, to the last bit; one that is gone or wrong ends them all with one line."
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path

import pytest
import torch

from conftest import server
from trustdd.core.experiment import Experiment, run_name, to_dict
from trustdd.distillation.distillation import load_checkpoint
from trustdd.evaluation.logits import Logits

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(dataset="digits", preset="smoke", ipc=1, iterations=3, n_nets=3, epochs=2, n_test=20, ood=("gaussian", "skimage-text"))
DSA = {o: Experiment(outliers=o, outer=2, inner=1, **SMALL) for o in ("none", "oe", "poe")}
SIDED = Experiment(outliers="poe", **SMALL) # its images and outliers are distilled one side after the other
MTT = Experiment(method="mtt", outliers="poe", experts=3, train_epochs=3, expert_epochs=2, max_start_epoch=2, **SMALL)
WATCHED = Experiment(outliers="poe", holdout=0.2, watch=(0, 2), **SMALL | dict(ood=()))
ALL = [*DSA.values(), SIDED, MTT, WATCHED]
WORDS = "distill --dataset digits --preset smoke --outliers poe --ipc 1 --outer 2 --inner 1 --iterations 3 --device cpu".split()

# A process that reads requests, one line each: groups of processes, side by side, that work on one store or run the words of a command.
# They are forked, so that torch is imported once. "die" is (process, function, number of the call, signal, to the whole group?).
SERVER = """
import itertools, json, os, signal, socket, sys, time, torch
from importlib import import_module
import trustdd.distillation.distillation, trustdd.reproduction.cli, trustdd.reproduction.cross_architecture, trustdd.reproduction.runs
from trustdd.core.distributed import is_main_process, process_group
from trustdd.core.experiment import Experiment
from trustdd.data.catalog import load_aux, load_dataset, load_ood
from trustdd.data.suites import default_aux

def before(function, action):
    module, name = function.rsplit(".", 1)
    module = import_module("trustdd." + module)
    plain, count = getattr(module, name), itertools.count(1)
    def call(*a, **kw):
        action(next(count), *a)
        return plain(*a, **kw)
    setattr(module, name, call)

def note(file, line):
    with open(file, "a") as f: f.write(f"{line}\\n")

ports = itertools.count(20000 + os.getpid() * 13 % 12000) # below those that the system hands out by itself

def free_port():
    for port in ports:
        with socket.socket() as s:
            try: s.bind(("127.0.0.1", port)); return port
            except OSError: pass

def child(r, store, exps=(), words=None, odd=(), die=None, notes=None):
    torch.set_num_threads(1)
    def deadly(n, *_):
        if n == die[2]: (os.killpg if die[4] else os.kill)(os.getpgid(0) if die[4] else os.getpid(), getattr(signal, die[3]))
    if die and r == die[0]: before(die[1], deadly)
    if notes:
        before("reproduction.runs.compute", lambda n, exp, *_: is_main_process() and note(notes, "run"))
        before("distillation.buffers._train_expert", lambda n, exp, k, *_: note(notes, f"expert {k}"))
    if words: return trustdd.reproduction.cli.main([*words, "--runs", store, *(odd if r == 1 else ())])
    with process_group():
        for e in exps: trustdd.reproduction.runs.load_or_run(Experiment(**e), store, "cpu", progress=False, every=0)

def fork(r, n, port, log, group, environment, **request):
    pid = os.fork()
    if pid: return pid
    status = 70
    try:
        os.setpgid(0, group)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2); sys.stderr = os.fdopen(2, "w", 1); os.dup2(2, 1)
        os.environ |= environment | (dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) if n > 1 else {})
        status = child(r, **request) or 0
    except BaseException: sys.excepthook(*sys.exc_info())
    finally: sys.stderr.flush(); os._exit(status)

def group(processes, environment={}, **request):
    port = free_port()
    pids = []
    for r in range(processes): pids.append(fork(r, processes, port, request["store"] + f".{r}.log", pids[0] if pids else 0, environment, **request))
    return pids

trustdd.distillation.distillation.commit = lambda: "a commit"
import pandas, sklearn.metrics, torch._dynamo, torch.utils.flop_counter # what a child would load
shape = load_dataset("digits").shape
for name in ("gaussian", "skimage-text"): load_ood(name, shape)
load_aux(default_aux("digits"), shape)

for line in sys.stdin:
    groups, codes, stopped = [group(**request) for request in json.loads(line)], {}, set()
    everybody, ends = {p for pids in groups for p in pids}, time.monotonic() + 300
    while len(codes) < len(everybody):
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status): stopped.add(pid)
        elif pid: codes[pid] = os.waitstatus_to_exitcode(status)
        left = everybody - set(codes) # those that do not go on are killed when the others have ended, as torchrun would
        if left and (left <= stopped or time.monotonic() > ends): [os.kill(p, signal.SIGKILL) for p in left]; stopped -= left
        time.sleep(0.01)
    print(json.dumps([[codes[p] for p in pids] for pids in groups]), flush=True)
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
ENV = {**{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRUSTDD_TIMEOUT": "400"}


@pytest.fixture(scope="module")
def ask():
    "`ask(request, ...)` runs groups of processes side by side and returns the exit statuses of each."
    with server(SERVER, timeout=200, env=ENV) as answer:
        yield lambda *requests: answer([{**r, "store": str(r["store"]), "exps": [to_dict(e) for e in r.get("exps", ())]} for r in requests])


@pytest.fixture(scope="module")
def alone(ask, tmp_path_factory):
    "The store of a single process."
    store = tmp_path_factory.mktemp("alone")/"runs"
    assert ask(dict(processes=1, store=store, exps=ALL)) == [[0]], said(store, 0)
    return store


def said(store, process):
    "What a process wrote."
    log = Path(f"{store}.{process}.log")
    return log.read_text() if log.exists() else ""


def ours(store, *processes):
    "The lines of errors that processes wrote; what torch writes of its own stays out, but nobody may show a traceback."
    text = "".join(said(store, r) for r in processes)
    assert "Traceback" not in text
    return [l for l in text.splitlines() if l.startswith("trustdd:")]


def same(a, b, exp):
    "Is the run of `exp` in two stores the same, but for how long it took and in how many processes?"
    a, b = a/run_name(exp), b/run_name(exp)
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for name in ("distilled.safetensors", "dynamics.jsonl", "ood.csv", "config.json", "scores.safetensors"):
        if (a/name).exists(): assert (a/name).read_bytes() == (b/name).read_bytes(), name
    log, report = (lambda f: [{k: v for k, v in json.loads(l).items() if k not in ("seconds", "checksum")} for l in (f/"log.jsonl").read_text().splitlines()]), (lambda f: {k: v for k, v in json.loads((f/"report.json").read_text()).items() if k not in ("runs", "checksum")})
    assert log(a) == log(b) and report(a) == report(b)
    one, two = (Logits.load(f/"logits.safetensors").values for f in (a, b))
    assert all(torch.equal(one[k], two[k]) for k in one | two)
    return True


def test_any_number_of_processes_makes_what_one_makes(ask, alone, tmp_path):
    notes = tmp_path/"notes"
    statuses = ask(dict(processes=2, store=tmp_path/"two", exps=ALL, notes=str(notes)), dict(processes=3, store=tmp_path/"three", exps=[DSA["poe"], MTT]))
    assert statuses == [[0, 0], [0, 0, 0]], said(tmp_path/"two", 0) + said(tmp_path/"three", 0)
    assert all(same(alone, tmp_path/"two", e) for e in ALL) and all(same(alone, tmp_path/"three", e) for e in (DSA["poe"], MTT))
    assert sorted(l for l in notes.read_text().splitlines() if "expert" in l) == [f"expert {k}" for k in range(3)]


@pytest.mark.parametrize("exp", [DSA["poe"], MTT], ids=["dsa", "mtt"])
def test_killed_together_and_continued_by_fewer_or_more(ask, alone, tmp_path, exp):
    begun = tmp_path/"begun"
    assert ask(dict(processes=2, store=begun, exps=[exp], die=(0, "distillation.distillation.save_checkpoint", 2, "SIGKILL", True))) == [[-9, -9]], said(begun, 0)
    state, _ = load_checkpoint(begun/run_name(exp)/"checkpoint.safetensors", exp, "cpu")
    assert state.iteration == 1 and not (begun/run_name(exp)/"distilled.safetensors").exists()
    for name in ("fewer", "more"): shutil.copytree(begun, tmp_path/name)
    assert ask(dict(processes=1, store=tmp_path/"fewer", exps=[exp]), dict(processes=3, store=tmp_path/"more", exps=[exp])) == [[0], [0, 0, 0]]
    assert same(alone, tmp_path/"fewer", exp) and same(alone, tmp_path/"more", exp)


@pytest.mark.parametrize("exp, more", [(DSA["poe"], "--outer 2 --inner 1"), (SIDED, ""), (MTT, "--method mtt --experts 3 --train-epochs 3 --expert-epochs 2 --max-start-epoch 2")], ids=["dsa", "sides", "mtt"])
def test_out_of_time_all_stop_and_the_same_command_continues(ask, alone, tmp_path, exp, more):
    "A lap of each process at a time; one line says so."
    words = f"run --dataset digits --preset smoke --outliers poe --ipc 1 --iterations 3 --n-nets 3 --epochs 2 --n-test 20 --ood gaussian,skimage-text --device cpu --time-budget 0.001 {more}".split()
    store, statuses = tmp_path/"runs", []
    while not statuses or statuses[-1] == [75, 75] and len(statuses) < 30: statuses += ask(dict(processes=2, store=store, words=words))
    assert statuses[-1] == [0, 0] and len(statuses) > 4, (statuses, said(store, 0) + said(store, 1))
    assert (said(store, 0) + said(store, 1)).count("trustdd: out of time") == len(statuses) - 1
    assert same(alone, store, exp)


def test_sigterm_stops_all_after_the_same_iteration(ask, alone, tmp_path):
    store, exp, words = tmp_path/"runs", DSA["poe"], [*WORDS, *"--n-nets 3 --epochs 2 --n-test 20 --ood gaussian,skimage-text".split()]
    assert ask(dict(processes=2, store=store, words=words, die=(0, "distillation.gradient_matching._matching_step", 1, "SIGTERM", True))) == [[75, 75]], said(store, 0) + said(store, 1)
    assert load_checkpoint(store/run_name(exp)/"checkpoint.safetensors", exp, "cpu")[0].iteration == 1
    assert ask(dict(processes=2, store=store, words=words)) == [[0, 0]], said(store, 0) + said(store, 1)
    for name in ("distilled.safetensors", "config.json"): assert (store/run_name(exp)/name).read_bytes() == (alone/run_name(exp)/name).read_bytes()


def test_two_groups_that_ask_for_one_run_compute_it_once(ask, alone, tmp_path):
    request = dict(processes=2, store=tmp_path/"runs", exps=[DSA["poe"]], notes=str(tmp_path/"notes"), environment=dict(TRUSTDD_TIMEOUT="200"))
    assert ask(request, request) == [[0, 0], [0, 0]], said(tmp_path/"runs", 0)
    assert (tmp_path/"notes").read_text() == "run\n" and same(alone, tmp_path/"runs", DSA["poe"])


@pytest.mark.parametrize("how, seconds", [("SIGKILL", 400), ("SIGSTOP", 5)])
def test_one_that_is_gone_or_stuck_ends_the_others(ask, tmp_path, how, seconds):
    store, began = tmp_path/"runs", time.monotonic()
    (status,) = ask(dict(processes=3, store=store, words=WORDS, die=(1, "distillation.gradient_matching._matching_step", 2, how, False), environment=dict(TRUSTDD_TIMEOUT=str(seconds))))
    assert status == [1, -9, 1] and time.monotonic() - began < 200
    lines = ours(store, 0, 2)
    assert len(lines) == 1 and "waits in vain" in lines[0]


def test_processes_that_were_asked_for_different_things_refuse(ask, tmp_path):
    store = tmp_path/"runs"
    assert ask(dict(processes=2, store=store, words=WORDS, odd=["--lr-img", "0.7"])) == [[2, 2]]
    lines = ours(store, 0, 1)
    assert len(lines) == 1 and "process 1 has lr_img = 0.7, process 0 has 0.1" in lines[0]


def test_a_broken_checkpoint_is_one_line(ask, tmp_path):
    store = tmp_path/"runs"
    assert ask(dict(processes=2, store=store, words=WORDS, die=(0, "data.distilled_set.write_safetensors", 1, "SIGKILL", True))) == [[-9, -9]]
    checkpoint, = store.rglob("config.json")
    (checkpoint.parent/"checkpoint.safetensors").write_text("half of it")
    for r in (0, 1): Path(f"{store}.{r}.log").unlink()
    assert ask(dict(processes=2, store=store, words=WORDS)) == [[2, 2]]
    lines = ours(store, 0, 1)
    assert len(lines) == 1 and "checkpoint.safetensors" in lines[0]


def torchrun(*words, seconds=400):
    "Two processes of a module or a script, by torchrun."
    return subprocess.run([Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", "2", *map(str, words)], capture_output=True, text=True, env=ENV, cwd=ROOT, timeout=seconds)


def test_torchrun_starts_the_command_line(alone, tmp_path):
    exp = DSA["poe"]
    words = "--dataset digits --preset smoke --outliers poe --ipc 1 --outer 2 --inner 1 --iterations 3 --n-nets 3 --epochs 2 --n-test 20 --ood gaussian,skimage-text --device cpu".split()
    done = torchrun("-m", "trustdd", "distill", *words, "--runs", tmp_path, "--out", tmp_path/"out.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DistilledSet(") == 1 and done.stderr.count("| 0/3 [") == 1
    from trustdd.data.distilled_set import DistilledSet
    ours, theirs = DistilledSet.load(tmp_path/"out.safetensors"), DistilledSet.load(alone/run_name(exp)/"distilled.safetensors")
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.outliers, theirs.outliers) and ours.experiment == theirs.experiment == exp


@pytest.mark.parametrize("words, what", [(["distill", "--method", "dsaa"], "dsaa"), (["distill", "--colour", "red"], "--colour"), (["paper"], "runs in one process")], ids=["value", "flag", "command"])
def test_a_wrong_request_is_one_line_once(ask, tmp_path, words, what):
    store = tmp_path/"runs"
    assert ask(dict(processes=2, store=store, words=words)) == [[2, 2]]
    lines = ours(store, 0, 1)
    assert len(lines) == 1 and all(part in lines[0] for part in what.split())


def test_torchrun_tells_a_wrong_request_once_and_fails(tmp_path):
    done = torchrun("-m", "trustdd", "distill", "--dataset", "nowhere", "--runs", tmp_path)
    ours = [l for l in done.stderr.splitlines() if l.startswith("trustdd:")]
    assert done.returncode == 1 and len(ours) == 1 and "nowhere" in ours[0] and not done.stdout
    assert re.search(r"exitcode\s*: 2", done.stderr) and list(tmp_path.iterdir()) == []


def test_torchrun_stops_all_when_one_is_killed(tmp_path):
    script = tmp_path/"script.py"
    script.write_text("import os, signal, sys\nimport trustdd.distillation.gradient_matching as g\nfrom trustdd.reproduction.cli import main\n"
                      "if os.environ['RANK'] == '0': g._matching_step = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(main(sys.argv[1:]))\n")
    done = torchrun(script, *WORDS, "--runs", tmp_path/"runs")
    assert done.returncode == 1 and "SIGKILL" in done.stderr
    assert not list(tmp_path.rglob("distilled.safetensors"))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_make_what_one_makes_to_float32_accuracy(tmp_path):
    words = "distill --dataset digits --preset smoke --outliers poe --ipc 1 --iterations 3 --device cuda".split()
    assert torchrun("-m", "trustdd", *words, "--runs", tmp_path/"two", "--out", tmp_path/"two.safetensors").returncode == 0
    assert subprocess.run([sys.executable, "-m", "trustdd", *words, "--runs", tmp_path/"one", "--out", tmp_path/"one.safetensors"], env=ENV, cwd=ROOT).returncode == 0
    from trustdd.data.distilled_set import DistilledSet
    one, two = (DistilledSet.load(tmp_path/f"{n}.safetensors") for n in ("one", "two"))
    assert torch.allclose(one.images, two.images, atol=1e-3) and torch.allclose(one.outliers, two.outliers, atol=1e-3)
