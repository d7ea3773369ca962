"A command with a time budget ends in time with status 75, gets further with each call, and ends with the bytes of one that was never stopped."
import json, math, os, re, shutil, signal, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from test_bad_input import GOOD, notebook
from trustdd.core.deadline import RESERVE
from trustdd.distillation.buffers import buffer_name
from trustdd.distillation.trajectories import epochs_done
from trustdd.reproduction.cli import main
from trustdd.reproduction.commands import Run
from trustdd.reproduction.flags import given, parse, with_experiment
from trustdd.core.experiment import Experiment, run_name
from trustdd.distillation.distillation import load_checkpoint
from trustdd.reproduction.runs import load_or_run

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--dataset digits --preset smoke --outliers poe --ipc 1 --outer 2 --inner 1 --n-nets 2 --n-test 20 --ood gaussian,skimage-text --device cpu".split()
BUDGET = RESERVE + 0.4


@pytest.fixture(autouse=True)
def no_budget(one_commit, monkeypatch):
    for name in ("TRUSTDD_DEADLINE", "TRUSTDD_STOP", "TRUSTDD_LAPPED"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRUSTDD_WORKERS", "1") # so that what --workers sets is undone


@pytest.fixture
def busy_clock(monkeypatch):
    "Budgets in seconds of computing, so that a machine that is busy with something else changes nothing."
    monkeypatch.setattr("trustdd.core.deadline.time", SimpleNamespace(time=time.process_time, monotonic=time.process_time))


def experiment(words):
    "The experiment that the words of `trustdd run` ask for."
    words = ["run", *words]
    return Experiment(**given(parse({"run": with_experiment(Run, words)}, words, ""), words))


def again_and_again(capfd, command, words, progress):
    "Call it with a budget until it is done: (calls, seconds of the longest). `progress()` must grow with every call that ends with 75."
    calls, longest, before = 0, 0., progress()
    while True:
        began = time.process_time()
        status = main([command, *map(str, words), "--time-budget", str(BUDGET)])
        longest, calls, err = max(longest, time.process_time() - began), calls + 1, capfd.readouterr().err
        if status == 0: return calls, longest
        line = err.splitlines()[-1]
        assert status == 75 and calls < 100 and line.startswith("trustdd: out of time: ") and line.endswith("; run the same command again to continue"), err
        assert re.search(r"\d+ of \d+ \w+ (done|trained)", line), line
        now = progress()
        assert now > before, (line, before, now)
        before = now


def timeless(folder, name):
    "The parts of a report or log that do not say how long something took."
    if name == "report.json": return {k: v for k, v in json.loads((folder/name).read_text()).items() if k not in ("runs", "checksum")}
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "checksum")} for line in (folder/name).read_text().splitlines()]


def same(folder, other, logs=("log.jsonl",)):
    for name in ("config.json", "distilled.safetensors", "ood.csv"): assert (folder/name).read_bytes() == (other/name).read_bytes(), name
    for name in ("report.json", *logs): assert timeless(folder, name) == timeless(other, name), name
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in other.iterdir()) # nothing is left over


# --- one after another

def test_run(tmp_path, capfd, busy_clock):
    "Iterations, then epochs of two networks, then the report."
    words = [*SMALL, "--iterations", "8", "--epochs", "24", "--runs"]
    exp = experiment(words[:-1])
    straight, folder = tmp_path/"straight"/run_name(exp), tmp_path/"stopped"/run_name(exp)
    assert main(["run", *words, str(tmp_path/"straight")]) == 0
    def progress():
        if (folder/"report.json").exists(): return math.inf
        if not (folder/"distilled.safetensors").exists():
            return load_checkpoint(folder/"checkpoint.safetensors", exp, "cpu")[0].iteration if (folder/"checkpoint.safetensors").exists() else -1
        networks = [json.loads(json.loads(head(p))["__metadata__"]["network"])["epochs"] for p in folder.glob(".trustdd/training/*.safetensors")]
        return exp.iterations + sum(networks)
    calls, longest = again_and_again(capfd, "run", [*words, tmp_path/"stopped"], progress)
    assert calls > 1 and longest < BUDGET, (calls, longest)
    same(folder, straight)


def head(path):
    "The JSON text at the beginning of a safetensors file."
    data = path.read_bytes()
    return data[8:8 + int.from_bytes(data[:8], "little")]


def test_distill_that_watches_itself(tmp_path, capfd, busy_clock):
    "The looks on the way are stopped and continued, too."
    words = [*SMALL, "--iterations", "6", "--epochs", "30", "--holdout", "0.2", "--watch", "0,3,6", "--runs"]
    exp = experiment(words[:-1])
    straight, folder = (tmp_path/name/run_name(exp) for name in ("straight", "stopped"))
    assert main(["run", *words, str(tmp_path/"straight")]) == 0
    calls = 0
    while (status := main(["distill", *words, str(tmp_path/"stopped"), "--time-budget", str(RESERVE + 0.2)])) == 75: calls += 1
    assert status == 0 and calls > 2
    assert main(["run", *words, str(tmp_path/"stopped")]) == 0
    same(folder, straight, ("log.jsonl", "dynamics.jsonl"))


def test_experts(tmp_path, capfd, busy_clock):
    words = "--dataset digits --preset smoke --outliers poe --ipc 1 --experts 3 --train-epochs 15 --device cpu --workers 1 --runs".split()
    exp = experiment(["--method", "mtt", *words[:-3]])
    straight, folder = (tmp_path/name/buffer_name(exp) for name in ("straight", "stopped"))
    assert main(["buffers", *words, str(tmp_path/"straight")]) == 0
    calls, longest = again_and_again(capfd, "buffers", [*words, tmp_path/"stopped"], lambda: epochs_done(folder))
    assert calls > 1 and longest < BUDGET, (calls, longest)
    for p in straight.glob("*.safetensors"): assert p.read_bytes() == (folder/p.name).read_bytes(), p.name
    for p in straight.glob("*.jsonl"): assert timeless(straight, p.name) == timeless(folder, p.name)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in straight.iterdir())


def test_evaluate(tmp_path, capfd, busy_clock):
    assert main(["distill", *SMALL, "--runs", str(tmp_path), "--out", str(tmp_path/"set.safetensors")]) == 0
    words = [tmp_path/"set.safetensors", "--epochs", "200", "--n-nets", "2", "--ood", "gaussian", "--device", "cpu", "--select", "best_on_test", "--out"]
    assert main(["evaluate", *map(str, words), str(tmp_path/"straight")]) == 0
    kept = lambda: sum(json.loads(json.loads(head(p))["__metadata__"]["network"])["epochs"] for p in (tmp_path/"stopped").glob(".trustdd/training/*.safetensors"))
    calls, longest = again_and_again(capfd, "evaluate", [*words, tmp_path/"stopped"], kept)
    assert calls > 1 and longest < BUDGET, (calls, longest)
    for name in ("ood.csv", "logits.safetensors"): assert (tmp_path/"stopped"/name).read_bytes() == (tmp_path/"straight"/name).read_bytes()
    assert not (tmp_path/"stopped"/".trustdd").exists()
    capfd.readouterr()
    assert main(["evaluate", str(words[0]), "--time-budget", "5"]) == 2 and "--out" in capfd.readouterr().err


def test_a_budget_that_is_too_short_for_anything(tmp_path, capfd):
    "Each call does one lap nevertheless: three iterations, an epoch of each network, and judging."
    words = [*SMALL, "--iterations", "3", "--epochs", "1", "--runs", str(tmp_path), "--time-budget", "0.001"]
    assert [main(["run", *words]) for _ in range(6)] == [75] * 5 + [0]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("trustdd: ")]
    assert [re.search(r"\d+ of \d+ \w+ \w+", line)[0] for line in said] == ["1 of 3 iterations done", "2 of 3 iterations done", "0 of 1 epochs done", "0 of 1 epochs done", "2 of 2 networks trained"]


def test_wrong_budgets(tmp_path, capfd, monkeypatch):
    for word in ("0", "-5", "nan", "soon"): assert main(["run", *SMALL, "--runs", str(tmp_path/"runs"), "--time-budget", word]) == 2
    monkeypatch.setenv("TRUSTDD_DEADLINE", "noon")
    assert main(["run", *SMALL, "--runs", str(tmp_path/"runs")]) == 2 and "noon" in capfd.readouterr().err
    assert not (tmp_path/"runs").exists()


# --- in other hands

def test_a_run_that_another_process_holds(tmp_path, capfd):
    folder = tmp_path/run_name(experiment(SMALL))
    folder.mkdir(parents=True)
    began = time.monotonic()
    with FileLock(folder/".lock"): assert main(["run", *SMALL, "--runs", str(tmp_path), "--time-budget", str(RESERVE + 0.5)]) == 75
    assert time.monotonic() - began < RESERVE + 0.5 and "in the hands of another process" in capfd.readouterr().err
    assert main(["run", *SMALL, "--runs", str(tmp_path), "--time-budget", "60"]) == 0


def test_the_time_counts_from_the_start_of_the_process(tmp_path, capfd, monkeypatch):
    "590 of 600 seconds are over when Python has been loaded: that is too late for more than one iteration."
    words = ["distill", *SMALL, "--iterations", "3", "--runs", str(tmp_path), "--time-budget", "600"]
    monkeypatch.setattr("trustdd.reproduction.cli.process_age", lambda: 590.)
    monkeypatch.setattr(sys, "argv", ["trustdd", *words])
    assert main() == 75 and "1 of 3 iterations done" in capfd.readouterr().err
    assert main(words) == 0 # called from Python, its time begins with the call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals as Unix has them")
def test_sigterm_stops_all_workers_between_two_epochs(tmp_path, request, forked):
    "It is sent to the main process alone; its two workers learn of it."
    tmp = tempfile.TemporaryDirectory() # a short path: it will hold a socket
    request.addfinalizer(tmp.cleanup)
    words = "--dataset digits --preset smoke --outliers none --ipc 1 --experts 2 --train-epochs 400 --device cpu --runs".split()
    exp = experiment(["--method", "mtt", *words[:-3]])
    folder = tmp_path/buffer_name(exp)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": tmp.name}
    child = forked("buffers", *words, tmp_path, "--workers", "2", cwd=ROOT, env=env, copies=True)
    while epochs_done(folder) < 4:
        assert child.poll() is None, child.err.read_text()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    done = epochs_done(folder)
    assert child.returncode == 75 and err.splitlines()[-1] == f"trustdd: out of time: experts digits none: {done} of 800 epochs done, {800 - done} left; run the same command again to continue"
    for k in range(2): FileLock(folder/f".expert{k:03d}.lock").acquire(timeout=0).lock.release() # nobody is at work any more
    assert not list(Path(tmp.name).glob("trustdd-stop-*"))


def test_paper(project, tmp_path, capfd):
    "The first item is begun however late it is, its run stops after a lap of its worker; the next call finishes it."
    paper = project/"nbs"/"paper"
    paper.mkdir(parents=True)
    shutil.copy(ROOT/"nbs"/"paper"/"fig02_msp_distributions.ipynb", paper)
    notebook(paper/"fig03_small.ipynb", GOOD, '\nruns:str = ""')
    words = ["--preset", "smoke", "--only", "fig02,fig03", "--workers", "1", "--runs", str(tmp_path/"runs"), "--out", str(tmp_path/"figures")]
    assert main(["paper", *words, "--time-budget", "1"]) == 75
    out, err = capfd.readouterr()
    assert "fig02  not finished in time" in out and "fig03  not finished in time: not begun" in out and "FAILED" not in out
    assert "0 of 2 items made, 2 left; 0 of 2 runs finished" in err.splitlines()[-1], err
    begun, = (tmp_path/"runs"/"sides").rglob("checkpoint.safetensors") # of one side of the run
    config, = (tmp_path/"runs").rglob("config.json")
    assert main(["paper", *words]) == 0
    assert (tmp_path/"figures"/"fig02.csv").exists() and not begun.exists()
    exp = Experiment(**json.loads(config.read_text()))
    main_fields = [f"--{k.replace('_', '-')}={getattr(exp, k)}" for k in ("dataset", "method", "outliers", "ipc", "seed", "preset")]
    assert main(["run", *main_fields, "--device", "cpu", "--runs", str(tmp_path/"straight")]) == 0
    one, other = (load_or_run(exp, tmp_path/name) for name in ("runs", "straight"))
    assert torch.equal(one.distilled.images, other.distilled.images) and torch.equal(one.distilled.outliers, other.distilled.outliers)
    assert one.report.accuracy == other.report.accuracy and (one.folder/"ood.csv").read_bytes() == (other.folder/"ood.csv").read_bytes()
