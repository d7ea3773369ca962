"A file after --plugin is executed in every process of a command, or the command ends in one line."
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from conftest import ROOT, content
from trustdd.core import experiment
from trustdd.data import own, plugins
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation import methods
from trustdd.evaluation.scores import FITTED, SCORES
from trustdd.reproduction.artifacts import up_to_date
from trustdd.reproduction.atlas import requested
from trustdd.reproduction.cli import main

CELLS = json.loads((ROOT/"nbs/guides/own_method.ipynb").read_text(encoding="utf-8"))["cells"]
CELL, = ["".join(c["source"]) for c in CELLS if "".join(c["source"]).startswith("%%writefile")]
KMEANS = CELL.partition("\n")[2]  # my_method.py, as the guide writes it
FIELDS = "--dataset digits --preset smoke --ipc 1 --n-nets 1 --epochs 2 --n-test 20 --ood gaussian,skimage-text --device cpu".split()
KM = ["--method", "kmeans_centres", "--outliers", "poe", *FIELDS]


@pytest.fixture
def mine(tmp_path):
    file = tmp_path/"my_method.py"
    file.write_text(KMEANS)
    return file


@pytest.fixture(autouse=True)
def registries():
    "What a test registers is gone after it."
    experiment.methods()  # all that is built in
    with (patch.dict(methods._methods), patch.dict(experiment._registered), patch.dict(own._sources), patch.dict(SCORES),
          patch.dict(FITTED), patch.dict(own.CORRUPTIONS), patch.dict(plugins._loaded)): yield


def python(*words, **env):
    "A process with the project on its path, on one thread."
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, *map(str, words)], env=env, cwd=ROOT, capture_output=True, text=True)


def test_the_method_of_the_guide_is_short():
    assert sum(bool(line.strip()) for line in KMEANS.splitlines()) < 30


# --- what is wrong with a file is one line, whatever the command

COMMANDS = ["run", "distill", "tune --outliers poe", "evaluate a.safetensors", "compare a.safetensors", "paper --only tab01",
            "reject a.safetensors --out b", "import a.pt", "list"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_plugin_is_one_line(refused, command):
    assert "plug-in" in (line := refused(*command.split(), "--plugin", "no_method.py"))
    assert line.endswith("no_method.py: No such file or directory\n")


@pytest.mark.parametrize("text, said", [
    (KMEANS.replace("torch, trustdd", "torch, nothing_there"), "line 1: ModuleNotFoundError: No module named 'nothing_there'"),
    (KMEANS.replace("def start(self,", "def start(self,,"), "SyntaxError"),
    (KMEANS.replace('"kmeans_centres"', '"dsa"'), "method = 'dsa' is taken by trustdd."),
    (KMEANS.replace('"kmeans_centres"', '"../out"'), "method = '../out' cannot be a name"),
    ("raise SystemExit('good bye')", "line 1: SystemExit: good bye"),
    ("print(1)\x00", "source code string cannot contain null bytes"), # a ValueError before Python 3.11.4
])
def test_a_broken_plugin_is_one_line(refused, mine, text, said):
    mine.write_text(text)
    line = refused("run", "--plugin", mine, *KM)
    assert line.startswith(f"trustdd: plug-in {mine}, line ") and said in line


def test_its_flags_and_its_help_are_those_of_any_method(refused, mine, capfd):
    assert "outer = '3' with method = 'kmeans_centres'" in refused("run", "--plugin", mine, *KM, "--outer", "3")
    with pytest.raises(SystemExit): main(["run", f"--plugin={mine}", "--method", "kmeans_centres", "--help"])
    assert "rounds" in capfd.readouterr().out
    assert "kmeans_centres" not in os.environ.get("TRUSTDD_PLUGINS", "")


# --- runs

def distilled(store):
    file, = Path(store).rglob("distilled.safetensors")
    return file


KILLED = """
import os, signal, sys
from trustdd.core.experiment import Experiment
from trustdd.distillation.methods import find_method
from trustdd.reproduction.runs import load_or_run
store, at = sys.argv[1], int(sys.argv[2])
exp = Experiment(dataset="digits", preset="smoke", method="kmeans_centres", outliers="poe", ipc=1, n_nets=1, epochs=2,
                 n_test=20, ood=("gaussian", "skimage-text"))
cls = type(find_method("kmeans_centres"))
step = cls.step
def deadly(self, exp, state, context):
    if state.iteration == at: os.kill(os.getpid(), signal.SIGKILL)
    step(self, exp, state, context)
cls.step = deadly
load_or_run(exp, store, "cpu", progress=False, every=0)
"""


def test_killed_resumed_and_shared_by_two_processes_gives_the_same_bytes(mine, forked, tmp_path):
    one, two, three = (tmp_path/name for name in ("one", "two", "three"))
    done = forked("run", "--plugin", mine, *KM, "--runs", one, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, err = done.communicate(timeout=200)
    assert done.returncode == 0, err
    with_file = dict(TRUSTDD_PLUGINS=str(mine))  # as another way to name it
    assert python("-c", KILLED, two, 4, **with_file).returncode == -signal.SIGKILL
    checkpoint, = two.rglob("checkpoint.safetensors")
    assert not list(two.rglob("distilled.safetensors")) and b'"iteration": 4' in checkpoint.read_bytes().replace(b"\\", b"")
    again = python("-c", KILLED, two, 99, **with_file)
    assert again.returncode == 0, again.stderr
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "trustdd")
    shared = python(*torchrun, "run", "--plugin", mine, *KM, "--runs", three)
    assert shared.returncode == 0, shared.stderr
    assert distilled(one).read_bytes() == distilled(two).read_bytes() == distilled(three).read_bytes()
    for name in ("scores.safetensors", "images.json", "config.json"):
        assert len({next(store.rglob(name)).read_bytes() for store in (one, two, three)}) == 1, name
    (kind, known), = DistilledSet.load(distilled(one)).provenance["own"].items()
    assert kind == "method kmeans_centres" and known.startswith("my_method.py ") and len(known.split()[1]) == 16


def test_another_version_is_another_run(project, mine, tmp_path, capsys):
    store = tmp_path/"store"
    def run(*words):
        assert main(["run", "--plugin", str(mine), *words, "--runs", str(store)]) == 0
        return Path(capsys.readouterr().out.splitlines()[-1])
    first, plain = run(*KM), run("--method", "random", *FIELDS)
    before = content(first)
    mine.write_text(KMEANS.replace(".mean(0)", ".median(0).values"))
    other = run(*KM)
    assert other != first and other.name.startswith(f"{first.name}-images-") and content(first) == before
    assert distilled(first).read_bytes() != distilled(other).read_bytes()
    assert run("--method", "random", *FIELDS) == plain  # does not use it
    assert "own" not in DistilledSet.load(distilled(plain)).provenance
    mine.write_text(KMEANS)
    assert run(*KM) == first and content(first) == before


HELPED = {
    "my_blur.py": "import trustdd\n\n@trustdd.corruption('my_dim')\ndef my_dim(x):\n    from my_tools.dim import amount\n    return x * amount\n",
    "my_tools/__init__.py": "", "my_tools/dim.py": "from . import numbers\namount = numbers.amount\n", "my_tools/numbers.py": "amount = 0.5\n"}

def test_a_module_beside_a_plugin_is_part_of_its_version(project, forked, tmp_path):
    "The run of `amount = 0.5` was taken for that of `amount = 0.1`; a notebook or a program started elsewhere did not find the module."
    home, store = tmp_path/"mine", tmp_path/"store"
    for name, text in HELPED.items():
        (home/name).parent.mkdir(parents=True, exist_ok=True)
        (home/name).write_text(text)
    def distil(): # from another folder, in a process of its own
        words = ["distill", "--plugin", home/"my_blur.py", "--corruptions", "my_dim", "--method", "random", "--outliers", "poe", *FIELDS, "--runs", store]
        done = forked(*words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        out, err = done.communicate(timeout=200)
        assert done.returncode == 0, err
        return Path(out.splitlines()[-1]).parent
    first = distil()
    (home/"unused.py").write_text("x = 1\n")
    assert distil() == first
    (home/"my_tools"/"numbers.py").write_text("amount = 0.1\n")
    os.utime(home/"my_tools"/"numbers.py", (0, 0))
    other = distil()
    assert other.name.startswith(f"{first.name}-images-")
    small, large = (DistilledSet.load(f).denormalise(DistilledSet.load(f).outliers).amax() for f in (other, first))
    assert small <= 0.1001 < large <= 0.5001
    assert not list(home.rglob("*.pyc"))


def test_what_fails_in_a_plugin_later_is_named(refused, tmp_path):
    "It was: division by zero, status 1, and no word of where."
    file = tmp_path/"fragile.py"
    file.write_text("import trustdd\n\n@trustdd.corruption('fragile')\ndef fragile(x):\n    return x / (len(x) // len(x) - 1) if len(x) // 0 else x\n")
    words = ["--corruptions", "fragile", "--method", "random", "--outliers", "poe", *FIELDS]
    assert f"plug-in {file}, line 5: ZeroDivisionError" in refused("distill", "--plugin", file, *words)


def test_a_checkpoint_of_another_version_is_refused(mine, tmp_path):
    from trustdd.core.checks import UserError
    from trustdd.core.experiment import Experiment
    from trustdd.distillation.distillation import distill
    plugins.load_plugin(mine)
    exp = Experiment(dataset="digits", preset="smoke", method="kmeans_centres", ipc=1, iterations=3)
    def stop(state):
        if state.iteration == 2: raise KeyboardInterrupt
    file = tmp_path/"checkpoint"
    with pytest.raises(KeyboardInterrupt): distill(exp, device="cpu", checkpoint=file, every=0, on_step=stop, progress=False)
    mine.write_text(KMEANS.replace(".mean(0)", ".median(0).values"))
    plugins.load_plugin(mine)
    with pytest.raises(UserError, match="another version of your own code"):
        distill(exp, device="cpu", checkpoint=file, progress=False)


SCORE = """
import trustdd

@trustdd.score("margin")
def margin(logits): return logits.topk(2).values.diff().flatten().neg()

@trustdd.corruption("dim")
def dim(x): return x / 3

trustdd.ood_set("half_grey", lambda shape: (trustdd.load_ood("gaussian", shape) // 2))
"""


def test_workers_and_tests_know_scores_corruptions_and_sets(project, mine, tmp_path, capsys):
    both = tmp_path/"more.py"
    both.write_text(SCORE)
    words = [w for w in KM if w not in ("--ood", "gaussian,skimage-text")] # tune takes held-out images
    with patch.dict(os.environ, TRUSTDD_WORKERS="2"):
        status = main(["tune", "--plugin", f"{mine},{both}", *words, "--corruptions", "dim", "--candidates", "0.5,1",
                       "--runs", str(tmp_path/"store")])
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "chosen: --lam" in said.out
    runs = [json.loads(f.read_text())["own"] for f in (tmp_path/"store").rglob("images.json")]
    assert len(runs) == 2 and runs[0] == runs[1]
    assert set(runs[0]) == {"method kmeans_centres", "corruption dim"}
    syn = next((tmp_path/"store").rglob("distilled.safetensors"))
    assert main(["evaluate", str(syn), "--plugin", f"{mine},{both}", "--ood", "half_grey", "--out", str(tmp_path/"out")]) == 0
    assert "margin" in (tmp_path/"out"/"ood.csv").read_text()
    assert "half_grey" in capsys.readouterr().out


# --- figures and tables

def test_a_table_shows_a_method_of_ones_own(project, mine, capfd):
    shutil.copytree(ROOT/"nbs"/"paper", project/"nbs"/"paper")
    words = "--preset smoke --ipc 1 --iterations 1 --epochs 1 --n-nets 1 --ood gaussian,skimage-text --methods dsa,kmeans_centres"
    assert main(["paper", "--only", "tab01", "--plugin", str(mine), *words.split()]) == 0
    made = project/"figures"/"own"/"smoke"
    rows = (made/"tab01.csv").read_text().splitlines()
    shares = [sum(row.endswith(f",{m}") for row in rows) for m in ("dsa", "kmeans_centres")]
    assert rows[0].endswith(",method") and shares[0] == shares[1] > 0 and sum(shares) == len(rows) - 1
    assert "| kmeans_centres |" in (made/"tab01.md").read_text() and "kmeans_centres-poe" in (made/"tab01.json").read_text()
    given = json.loads((project/"figures"/"own"/"smoke"/"tab01.json").read_text())
    assert len(given["runs"]) == 6
    asked = dict(ipc="1", methods="dsa,kmeans_centres", settings=dict(ood=["gaussian", "skimage-text"], iterations=1, n_nets=1, epochs=1))
    (item,) = requested("smoke", ["tab01"], None, made, asked).values()
    with plugins.with_plugins([mine]):
        assert up_to_date(*item)
        mine.write_text(KMEANS + "\n")
        assert not up_to_date(*item)
    capfd.readouterr()


def test_full_has_no_images_per_class(project, capfd):
    from trustdd.reproduction.plan import plan
    for item in ("tab01", "fig04", "fig20"):
        said = plan("smoke", [item], parameters=dict(methods="full"), folder=ROOT/"nbs"/"paper")["items"][item]["problem"]
        assert said.startswith("methods: full "), said


@pytest.mark.parametrize("item, runs", [("tab05", {"dm": 6, "full": 3}), ("fig04", {"dm": 6}), ("fig20", {"dm": 3}), ("tab13", {"dm": 3}),
                                        ("tab01", {"dm": 6})])
def test_items_plan_the_runs_of_further_methods(project, item, runs):
    from trustdd.reproduction.plan import plan
    made = [plan("smoke", [item], parameters=dict(methods=m), folder=ROOT/"nbs"/"paper") for m in ("", ",".join(["dsa", *runs]))]
    assert not any(p["items"][item]["problem"] for p in made)
    more = set(made[1]["runs"]) - set(made[0]["runs"])
    for method, n in runs.items():
        both = [name for name in made[1]["runs"] if f"/{method}-" in name]
        assert len(both) == n and len([name for name in more if f"/{method}-" in name]) == n - (method == "full")
    assert set(made[0]["runs"]) <= set(made[1]["runs"])


def test_commands_for_other_machines_name_the_plugin(mine):
    from trustdd.core.experiment import Experiment
    from trustdd.reproduction.plan import words
    with plugins.with_plugins([mine]): said = words(Experiment(dataset="digits", method="kmeans_centres", iterations=3))
    assert said[-2:] == ["--plugin", str(mine)] and said[-4:-2] == ["--iterations", "3"]
