"The benchmark still runs, in tiny sizes: every line of it, and what is for a GPU as a rehearsal; and what it promises can fail."
import importlib, json, os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

HERE = Path(__file__).resolve().parent.parent/"benchmarks"


def script(*words, folder):
    "Run bench.py as a person does on a machine where nothing is installed: from anywhere, with nothing on the path."
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, HERE/"bench.py", *map(str, words)], capture_output=True, text=True, cwd=folder, env=env)


@pytest.fixture
def modules(monkeypatch):
    "The benchmark's modules in this process."
    monkeypatch.syspath_prepend(str(HERE))
    names = ("history", "measuring", "plain", "memory", "trajectories", "gpu", "unchanged", "bench")
    for name in names: monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in names}
    for name in names: sys.modules.pop(name, None)


class Here:
    "Takes the place of the process of our side, where seconds mean nothing."
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def submit(self, work, *args):
        made = work(*args)
        return SimpleNamespace(result=lambda: made)


@pytest.fixture
def main(modules, monkeypatch):
    "Call bench.main with these words; what it said when it ended, None if nothing."
    monkeypatch.setattr(modules["bench"], "another_process", Here)
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, words)])
        try: modules["bench"].main()
        except SystemExit as e: return e.code
        finally: torch.set_num_threads(1)
    return call


def rows(folder, stem): return json.loads((folder/f"{stem}.json").read_text())


def test_every_line_in_tiny_sizes(tmp_path):
    done = script("--quick", "--repeats", 1, "--threads", 1, "--out", tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    got = {r["name"].split(":")[0]: r for r in rows(tmp_path, "latest")}
    assert {"outer-paper", "dm-paper", "dm-cifar", "outer-paper-bfloat16", "train-paper-bfloat16", "outer-cifar", "train-paper", "evaluate-paper", "load", "trajectory-10", "memory-load", "memory-distill", "memory-evaluate"} <= set(got)
    assert got["train-paper-outliers"]["compile_s"] > 1 and [r for r in got.values() if r["compile_s"]] == [got["train-paper-outliers"]]
    for r in got.values():
        assert {"name", "ours_s", "plain_s", "ratio", "share_of_gemm"} <= set(r)
        assert r["name"].endswith("-bfloat16: not on this processor") if r["ours_s"] is None else r["ours_s"] > 0
    for name in ("memory-load", "memory-distill", "memory-evaluate"):
        assert got[name]["mb"] is None or 0 < got[name]["mb"] <= got[name]["limit_mb"]
    kept = [json.loads(line) for line in (tmp_path/"history.jsonl").read_text().splitlines()]
    assert [e["name"] for e in kept] == [r["name"] for r in rows(tmp_path, "latest")]
    assert all(e["date"].endswith("Z") and e["machine"] and e["commit"] and e["torch"] and e["results"] == "latest" for e in kept)


def test_too_much_memory_fails(modules, main, tmp_path, monkeypatch):
    monkeypatch.setitem(modules["memory"].LIMITS, "memory-load", 0.01)
    said = main("--quick", "--only", "memory-load", "--out", tmp_path)
    if modules["measuring"].memory(torch.device("cpu")) is None: pytest.skip("the system does not tell how much memory a process has")
    assert "memory-load" in said and "at most 0.01 MB is allowed" in said and not list(tmp_path.iterdir())


def test_other_numbers_fail(modules, main, tmp_path, monkeypatch):
    load = modules["plain"].load_folder
    monkeypatch.setattr(modules["plain"], "load_folder", lambda folder: (load(folder)[0], load(folder)[1] + 1))
    said = main("--quick", "--only", "load", "--repeats", 1, "--out", tmp_path)
    assert "differ in the labels" in said and not list(tmp_path.iterdir())


def test_a_processor_without_bfloat16_says_so(main, tmp_path, monkeypatch):
    monkeypatch.setattr("trustdd.networks.compute.processor_flags", set)
    assert main("--quick", "--only", "outer-paper-bfloat16,train-paper-bfloat16", "--out", tmp_path) is None
    assert [r["name"] for r in rows(tmp_path, "latest")] == [f"{what}-paper-bfloat16: not on this processor" for what in ("outer", "train")]


def test_a_second_run_adds_to_the_history(main, tmp_path):
    for _ in range(2): assert main("--quick", "--only", "load", "--repeats", 1, "--out", tmp_path) is None
    assert len(rows(tmp_path, "latest")) == 1 and len((tmp_path/"history.jsonl").read_text().splitlines()) == 2


def test_the_picture_of_the_history(modules):
    history = modules["history"]
    kept = history.read(HERE/"history.jsonl")
    assert len(kept) >= 22 and kept == sorted(kept, key=lambda e: e["date"])
    empty = dict(kept[-1], name="gpu-new: nothing measured yet", ours_s=None, plain_s=None, share_of_gemm=None, ratio=None)
    first, again = (history.picture([*kept, empty]) for _ in range(2))
    assert first == again and first.startswith(b"\x89PNG") and len(first) < 200_000


def test_two_processes_make_the_same(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, HERE/"ranks.py", "--quick", "--repeats", "1", "--out", tmp_path], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    got = json.loads((tmp_path/"ranks.json").read_text())
    assert got["machine"]["quick"] and [r["difference"] for r in got["rows"]] == [0, 0, 0, None] and all(r["many_s"] > 0 for r in got["rows"])


def test_runs_that_come_out_otherwise_are_noticed(modules):
    unchanged = modules["unchanged"]
    none, oe, _ = unchanged.wanted("cifar", [10], [0, 1, 2])
    same, other = unchanged.row(none, none), unchanged.row(none, oe)
    assert same["held"] and same["same_bits"] == 3 and same["then"] == same["now"] and same["networks"] == 9
    assert not other["held"] and other["same_bits"] == 0
    assert "| cifar | DSA none | 10 | 0, 1, 2 |" in modules["bench"].unchanged_said([dict(other, machine="here", torch="2", date="today", commit="0")])[0]


def test_how_long_a_preset_takes(modules, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["presets.py", "--only", "smoke", "--out", str(tmp_path)])
    importlib.import_module("presets").main()
    got = json.loads((tmp_path/"presets.json").read_text())
    assert got["machine"]["commit"] and [(r["preset"], r["method"], r["ipc"]) for r in got["rows"]] == [("smoke", "dsa", 10), ("smoke", "mtt", 1)]
    for r in got["rows"]:
        stages = r["stages"].values()
        assert r["seconds"] == pytest.approx(sum(s["first"] + s["each"] * (s["steps"] - 1) for s in stages)) and all(s["each"] > 0 for s in stages)
    assert [s["unit"] for s in got["rows"][1]["stages"].values()] == ["epochs", "iterations", "epochs"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("words", [(), ("--device", "cpu"), ("--device", "cuda", "--quick")], ids=" ".join)
def test_without_a_gpu_one_line_and_status_2(main, tmp_path, capfd, words):
    assert main("--gpu", "--out", tmp_path, *words) == 2
    out, err = capfd.readouterr()
    assert not out and len(err.strip().splitlines()) == 1 and "NVIDIA GPU" in err
    assert not list(tmp_path.iterdir())


def test_the_gpu_part_is_rehearsed_on_a_cpu(tmp_path):
    done = script("--gpu", "--device", "cpu", "--quick", "--repeats", 1, "--threads", 1, "--budget", 100_000, "--out", tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    facts, got = json.loads((tmp_path/"gpu-machine.json").read_text()), {r["name"].split(":")[0]: r for r in rows(tmp_path, "gpu")}
    assert set(got) == {"gpu-step-1", "gpu-step-10", "gpu-step-50", "gpu-step-10-tf32", "gpu-train", "gpu-evaluate", "gpu-experts", "gpu-whole", "gpu-whole-run"}
    assert all(r["ours_s"] is not None for r in got.values()) and facts["wrong"] == []
    assert len(facts["differences"]) == 7 and max(facts["differences"]["networks trained, sigmoid"].values()) < 1e-3
    assert len((tmp_path/"history.jsonl").read_text().splitlines()) == len(got)


def test_a_gpu_that_computes_something_else_is_noticed(modules, main, tmp_path, monkeypatch):
    gpu, calls = modules["gpu"], []
    same = ("same", {"x": 1e-3}, {"x": torch.ones(1)}, {"x": torch.ones(1)})
    for name in ("distilled_alike", "experts_alike", "logits_alike"): monkeypatch.setattr(gpu, name, lambda *a, **kw: same)
    monkeypatch.setattr(gpu, "weights", lambda nets: calls.append(nets) or torch.full((3,), float(len(calls))))
    def breaks(asked, facts): raise RuntimeError("no kernel")
    monkeypatch.setitem(gpu.PARTS, "train", breaks)
    said = main("--gpu", "--device", "cpu", "--quick", "--only", "train,correct", "--out", tmp_path)
    assert "train failed: RuntimeError: no kernel" in said and "differ in the weights" in said
    assert json.loads((tmp_path/"gpu-machine.json").read_text())["wrong"] == said.splitlines()


@pytest.mark.parametrize("words, said", [(("--gpu", "--full", "--device", "cpu", "--quick"), "full goes with neither"), (("--budget", "5"), "budget is for gpu"),
                                         (("--only", "loading"), "only = 'loading' is unknown"), (("--gpu", "--device", "cpu", "--quick", "--only", "load"), "only = 'load' is unknown")])
def test_wrong_words(main, capfd, words, said):
    assert main(*words) == 2 and said in capfd.readouterr().err
