"What several test files build on."
import json, os, signal, socket, subprocess, sys, time
from contextlib import contextmanager, suppress
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


# Processes as a plain shell starts them: with these set, two faults of theirs could not be seen.
for name in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"): os.environ.pop(name, None)


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


# A process that has imported what a command would, and forks one for every request, which goes on as `python -m trustdd` with words, folder, environment
# and streams of its own, in a session of its own. The process between the two says its number and waits for it, and then notes its exit status.
# If asked to, a fork server that the command starts, for workers or kernels, is its copy as well; an interpreter would import everything anew.
COMMANDS = """
import asyncio, json, multiprocessing.forkserver, os, runpy, sys, tempfile
from contextlib import suppress
import trustdd.reproduction.commands, trustdd.reproduction.set_commands, trustdd.reproduction.runs, trustdd.reproduction.atlas, trustdd.reproduction.panels
import ipykernel.ipkernel, pandas, sklearn.datasets, sklearn.metrics, torch._dynamo, torch.utils.flop_counter

def copied(path, words, kept, usual=multiprocessing.util.spawnv_passfds):
    if "multiprocessing.forkserver" not in words[-1]: return usual(path, words, kept)
    number = os.fork()
    if number: return number
    try:
        first = 3
        for fd in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
            os.closerange(first, fd)
            first = fd + 1
        multiprocessing.forkserver._forkserver.__init__() # whose lock is held, since it starts this
        asyncio.set_event_loop(None)
        exec(words[-1], {})
    finally: os._exit(1)

for line in sys.stdin:
    if not os.fork(): break
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]: pass
else: sys.exit()
request = json.loads(line)
number = os.fork()
if number:
    print(number, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    with open(request["status"] + ".part", "w") as f: f.write(str(status))
    os.rename(f.name, request["status"])
    os._exit(0)
os.setsid()
for fd, (name, how) in enumerate([(os.devnull, os.O_RDONLY), *((request[k], os.O_WRONLY | os.O_APPEND) for k in ("out", "err"))]):
    opened = os.open(name, how)
    os.dup2(opened, fd)
    os.close(opened)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["env"])
if request["copies"]: multiprocessing.util.spawnv_passfds = copied
tempfile.tempdir, sys.path[0], sys.argv[1:] = None, request["cwd"], request["words"]
runpy.run_module("trustdd", run_name="__main__", alter_sys=True)
"""


class Forked:
    "A command in a process of its own: as much of `subprocess.Popen` as the tests need."
    def __init__(self, ask, folder, words, cwd, env, copies):
        self.words, self.err, self._out, self._status = words, folder/"err", folder/"out", folder/"status"
        for file in (self._out, self.err): file.touch()
        self.pid = ask(dict(words=words, cwd=str(cwd), env=env, out=str(self._out), err=str(self.err), status=str(self._status), copies=copies))

    @property
    def returncode(self): return int(self._status.read_text()) if self._status.exists() else None
    def poll(self): return self.returncode

    def communicate(self, timeout):
        ends = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > ends: raise subprocess.TimeoutExpired(self.words, timeout)
            time.sleep(0.02)
        return self._out.read_text(), self.err.read_text()

    def send_signal(self, number):
        if self.returncode is None: os.kill(self.pid, number)


@pytest.fixture(scope="session")
def commands():
    with server(COMMANDS, timeout=60) as ask: yield ask


@pytest.fixture
def forked(commands, tmp_path_factory):
    """`forked(words…, cwd=…, env=…)` is `python -m trustdd words…` without the seconds that a new interpreter takes to import torch; what it leaves is killed.
    A test of start-up, streams or locales needs the interpreter. With `copies=True` its fork servers begin with all that the command has: not for tests of what workers know."""
    started = []
    def start(*words, cwd, env, copies=False):
        started.append(Forked(commands, tmp_path_factory.mktemp("command"), [str(w) for w in words], cwd, env, copies))
        return started[-1]
    yield start
    for child in started:
        with suppress(ProcessLookupError): os.killpg(child.pid, signal.SIGKILL)


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
