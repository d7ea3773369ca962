"What several test files build on."
import json, os, signal, socket, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from trustdd.reproduction.cli import main

ROOT = Path(__file__).resolve().parent.parent

LONGEST = ("test_workflow", "test_faults", "test_benchmark", "test_budget")


def pytest_collection_modifyitems(items):
    "The longest tests first: with two processes, none waits for one of them at the end."
    def is_short(item): return item.path.stem not in LONGEST
    items.sort(key=is_short)


# Signals as a terminal gives them, also where the tests run in the background or under nohup.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN: signal.signal(number, usual)


@contextmanager
def one_thread():
    "One thread of PyTorch, and as many as before afterwards: sums come out in one order."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield
    finally: torch.set_num_threads(threads)


@contextmanager
def server(source, timeout, env=os.environ):
    "A process of `source`, which reads requests from stdin and answers each with a line, both JSON: yields `ask(request)`, which returns the answer."
    process = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               env={**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    def ask(request):
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, f"the process has ended, with {process.wait(timeout=timeout)}"
        return json.loads(line)
    try: yield ask
    finally:
        try: process.stdin.close(); process.wait(timeout=timeout)
        except (OSError, subprocess.TimeoutExpired): process.kill(); process.wait(); raise


def content(folder):
    "Relative path → bytes of every file below."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def odd_json(text):
    "What is odd → an object of JSON, as that of the text but for that; nobody writes it by accident, and Python reads most of it."
    def before(more): return "{" + more + ", " + text.lstrip()[1:]
    def nested(n): return "[" * n + "]" * n
    key = next(iter(json.loads(text)))
    return {"a thousand lists": nested(1000), "a list without end": "[" * 100_000, "a thousand objects": '{"a": ' * 1000 + "1" + "}" * 1000,
            "a deep value": before(f'"more": {nested(1000)}'), "a less deep one": before(f'"more": {nested(400)}'),
            "NaN": before('"more": [NaN]'), "Infinity": before('"more": -Infinity'), "1e999": before('"more": 1e999'), "a key twice": before(f'"{key}": 7')}


@pytest.fixture
def one_commit(monkeypatch):
    "What a file says about its making stays the same if somebody commits during the tests; on one thread."
    monkeypatch.setattr("trustdd.distillation.distillation.commit", lambda: "a commit")
    with one_thread(): yield


@pytest.fixture
def project(tmp_path, monkeypatch):
    "An empty project on one thread; what is stored or cached lies in it, and nothing can be downloaded."
    def offline(*_): raise OSError("no internet in the tests")
    folder = tmp_path/"project"
    folder.mkdir()
    (folder/"settings.ini").write_text("[DEFAULT]\nlib_name = trustdd\n")
    monkeypatch.chdir(folder)
    for name in ("TRUSTDD_DATA", "TRUSTDD_RUNS"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRUSTDD_WORKERS", "1") # so that what --workers sets is undone
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("create_connection", "getaddrinfo"): monkeypatch.setattr(socket, name, offline)
    with one_thread(): yield folder


@pytest.fixture
def refused(project, capfd):
    "Runs a command that must fail: one line on stderr, status 2, every file as it was. Returns the line."
    def run(*words, status=2, here=project):
        before = content(here)
        capfd.readouterr()
        got, (out, err) = main([str(w) for w in words]), capfd.readouterr()
        assert err.startswith("trustdd: ") and err.endswith("\n") and err.count("\n") == 1 and len(err) < 1000, err
        assert (got, out) == (status, ""), err
        assert content(here) == before
        return err
    return run
