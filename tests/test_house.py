"The house around the chapters: what is imported, what a wheel holds, and that versions agree."
import os, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import trustdd

ROOT = Path(__file__).resolve().parent.parent
HEAVY = "matplotlib seaborn pandas sklearn scipy skimage pytorch_ood papermill IPython fastcore".split()
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT/"settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]


def python(*args, **kw):
    "Run this Python with the project on its path."
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, **kw)


def seconds(statement):
    "How long the statement takes in a fresh process."
    done = python("-c", f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)")
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_import_costs_little_beyond_torch():
    ours, torchs = "import trustdd", "import torch, torchvision"
    seconds(ours), seconds(torchs)
    times = [(seconds(ours), seconds(torchs)) for _ in range(3)]
    best = [min(t) for t in zip(*times)]
    assert best[0] <= 1.3 * best[1], f"import trustdd takes {best[0]:.2f} s, torch and torchvision {best[1]:.2f} s"


def test_import_loads_nothing_for_plots_or_notebooks():
    done = python("-c", f"import sys, trustdd; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_every_module_imports_without_plots_or_notebooks():
    names = [f"trustdd.{p.stem}" for p in sorted((ROOT/"trustdd").glob("[a-z]*.py"))]
    done = python("-c", f"import sys, {', '.join(names)}; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_versions_agree():
    assert trustdd.__version__ == SETTINGS["version"]
    assert f"version: {SETTINGS['version']}\n" in (ROOT/"CITATION.cff").read_text()
    assert f"## {SETTINGS['version']}" in (ROOT/"CHANGELOG.md").read_text()


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path/"source"
    source.mkdir()
    shutil.copytree(ROOT/"trustdd", source/"trustdd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "setup.py pyproject.toml settings.ini MANIFEST.in LICENSE README.md".split():
        if (ROOT/name).exists(): shutil.copy(ROOT/name, source)
    how = ["--no-isolation"] if find_spec("setuptools") else []
    done = python("-m", "build", "--wheel", *how, "--outdir", str(tmp_path/"dist"), str(source))
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, = (tmp_path/"dist").glob(f"trustdd-{SETTINGS['version']}-*.whl")
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if ".dist-info/" not in n}
        entry = z.read(f"trustdd-{SETTINGS['version']}.dist-info/entry_points.txt").decode()
    assert held == {p.relative_to(ROOT).as_posix() for p in (ROOT/"trustdd").rglob("*.py")}
    assert "trustdd = trustdd.cli:main" in entry


needs_cli = pytest.mark.skipif(not (ROOT/"trustdd"/"cli.py").exists(), reason="trustdd/cli.py is not there")


@needs_cli
@pytest.mark.parametrize("args", [["--version"], ["--help"], ["list", "--help"], ["distill", "--help"], ["evaluate", "--help"], ["paper", "--help"]], ids=" ".join)
def test_command_line_answers(args):
    done = python("-c", "import sys; from trustdd.cli import main; sys.argv[0] = 'trustdd'; sys.exit(main())", *args, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert (SETTINGS["version"] if args == ["--version"] else args[0] if len(args) > 1 else "distill") in done.stdout


@needs_cli
def test_a_wrong_command_is_one_line_and_status_2():
    done = python("-c", "import sys; from trustdd.cli import main; sys.argv[0] = 'trustdd'; sys.exit(main())", "distill", "--method", "dsaa", stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "dsaa" in done.stderr and "Traceback" not in done.stderr
