"The house: its rooms and their order, the size of its modules, what a wheel holds, what an import costs."
import ast
import base64
import contextlib
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import trustdd
from trustdd.reproduction.cli import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/"trustdd"
sys.path.insert(0, str(ROOT/"tools"))
import all_tests
import check_python
import count
import count_prose
import draw_rooms
import migrate_published
import only
import same_bytes
import same_numbers

HEAVY = "matplotlib seaborn pandas sklearn scipy skimage pytorch_ood papermill IPython fastcore".split()
TINY = ("__main__",)  # modules that may be smaller than the others
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT/"settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]


def python(*args, **kw):
    "Run this Python with the project on its path."
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, **kw)


# --- rooms

@pytest.fixture(scope="module")
def graph():
    "Module -> the modules that it imports, without `__main__`, which only calls the command line."
    found = count.import_graph(PACKAGE)
    return {name: found[name] for name in found if not name.endswith("__main__")}


def test_no_room_imports_a_later_one(graph):
    assert {count.room(name) for name in graph} == set(count.ROOMS)
    assert not count.upward(graph)


@pytest.mark.parametrize("room", count.ROOMS)
def test_at_most_four_levels_of_imports_in_a_room(graph, room):
    part = count.inside(graph, room)
    assert part and max(count.levels(part).values()) <= 4


def test_at_most_eleven_levels_of_imports_in_all(graph):
    assert max(count.levels(graph).values()) <= 11


def test_a_module_has_40_to_250_lines():
    sizes = {name: len(count.lines_of(path)) for name, path in count.modules(PACKAGE).items()}
    wrong = {n: s for n, s in sizes.items() if s > 250 or s < 40 and n.split(".")[-1] not in TINY}
    assert not wrong


def test_no_line_is_longer_than_100_characters():
    wrong = [f"{name}:{i}" for name, path in count.modules(PACKAGE).items()
             for i in count.long_lines(path.read_text(encoding="utf-8"))]
    for path in count.notebooks(ROOT/"nbs"):
        for number, source in enumerate(count.code_cells(path)):
            wrong += [f"{path.name}, code cell {number}, line {i}" for i in count.long_lines(source)]
    assert not wrong


def paths_in(cells):
    "The absolute paths of a machine in what cells print or return."
    text = json.dumps([cell.get("outputs", []) for cell in cells])
    return re.findall(r"(?<![\w.<:/])/(?:work|tmp|root|home|Users)/[\w./-]+", text)


def test_no_stored_output_shows_a_path_of_the_machine():
    assert paths_in([dict(outputs=["see /home/me/x.png"])]) == ["/home/me/x.png"]
    found = {path.name: paths_in(json.loads(path.read_text(encoding="utf-8"))["cells"])
             for path in count.notebooks(ROOT/"nbs")}
    assert found and not {name: paths for name, paths in found.items() if paths}


def test_no_private_name_is_imported():
    assert not count.private_imports(PACKAGE)


def left_over(source):
    "The imported names that a module's source never uses."
    nodes = list(ast.walk(ast.parse(source)))
    imported = {(a.asname or a.name).split(".")[0] for node in nodes
                if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names}
    return sorted(imported - {node.id for node in nodes if isinstance(node, ast.Name)})


def test_no_import_is_left_over():
    assert left_over("import json, math\nfrom os import path as p\nmath.pi") == ["json", "p"]
    found = {name: left_over(path.read_text(encoding="utf-8"))
             for name, path in count.modules(PACKAGE).items()}
    assert not {n: names for n, names in found.items() if names and not n.endswith("__init__")}


def documented(thing):
    "Has a function or class a docstring of its own? A dataclass without one shows its signature."
    text = inspect.getdoc(thing) or ""
    return bool(text) and not text.startswith(f"{getattr(thing, '__name__', '')}(")


@pytest.mark.parametrize("name", [n for n in trustdd.__all__ if n != "__version__"])
def test_every_public_name_is_there_with_a_docstring(name):
    thing = getattr(trustdd, name)
    if inspect.isroutine(thing) or inspect.isclass(thing): assert documented(thing)


def test_every_name_that_a_module_lists_is_there():
    for name, path in count.modules(PACKAGE).items():
        if name.endswith("__main__"): continue
        module = importlib.import_module(name)
        missing = [n for n in count.public_names(path) if not hasattr(module, n)]
        assert not missing, (name, missing)


def test_the_page_on_architecture_names_chapters_that_are_there():
    text = (ROOT/"docs"/"architecture.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert tuple(rooms) == count.ROOMS == tuple(draw_rooms.LANES)
    named = re.findall(rf"`((?:{'|'.join(count.ROOMS)})/\w+)`", text)
    assert len(named) > 10
    for name in named:
        assert (PACKAGE/f"{name}.py").exists(), name
        folder, stem = name.split("/")
        assert list((ROOT/"nbs"/folder).glob(f"*_{stem}.ipynb")), name
    drawn = (ROOT/"docs"/"rooms.svg").read_text(encoding="utf-8")
    assert drawn == draw_rooms.picture(), "run python tools/draw_rooms.py"


# --- the same questions asked of a package that does everything wrong

TOY = {
    "core/a.py": "__all__ = ['f']\nfrom .b import _secret\ndef f(): return _secret\n",
    "core/b.py": "_secret = 1\nfrom toy.data.x import g\n",
    "data/x.py": "__all__ = ['g', 'h']\nimport json\ndef g():\n    from ..core import c\n    return c._hidden\n",
    "core/c.py": "_hidden = lambda: 1\n" + "# " + "x" * 100 + "\n",
    "core/__init__.py": "",
    "data/__init__.py": "",
    "_modidx.py": "d = " + "'x'" * 60 + "\n",
}


@pytest.fixture
def toy(tmp_path):
    "A package with two rooms."
    for name, text in TOY.items():
        path = tmp_path/"toy"/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path/"toy"


def test_what_is_wrong_with_a_package_is_found(toy):
    graph = count.import_graph(toy)
    assert graph == {"toy.core.a": {"toy.core.b"}, "toy.core.b": {"toy.data.x"}, "toy.core.c": set(),
                     "toy.data.x": {"toy.core.c"}}
    assert count.upward(graph) == [("toy.core.b", "toy.data.x")]
    assert count.levels(graph) == {"toy.core.c": 1, "toy.data.x": 2, "toy.core.b": 3, "toy.core.a": 4}
    assert count.levels(count.inside(graph, "core")) == {"toy.core.a": 2, "toy.core.b": 1, "toy.core.c": 1}
    assert count.private_imports(toy) == ["toy.core.a: toy.core.b._secret", "toy.data.x: toy.core.c._hidden"]
    assert count.public_names(toy/"data"/"x.py") == ["g", "h"]
    assert [count.long_lines(p.read_text()) for p in count.modules(toy).values()] == [[], [], [2], []]
    assert count.lambdas(toy/"core"/"c.py") == 1


def test_a_circle_of_imports_is_named():
    with pytest.raises(ValueError, match="a -> b -> a"): count.levels({"a": {"b"}, "b": {"a"}})


def test_the_measures_of_this_house_are_printed():
    done = python(ROOT/"tools"/"count.py")
    assert done.returncode == 0, done.stderr
    assert "public names" in done.stdout and "import levels" in done.stdout


# --- tools that compare versions

def figures(folder, values, verdict="It held: 61.5", more=""):
    "A folder with one table and its description."
    folder.mkdir()
    lines = [f"ipc,mean{more and ',new'}", *(f"1,{v}{more}" for v in values)]
    (folder/"tab01.csv").write_text("\n".join(lines) + "\n")
    about = {"caption": "A table.", "claim": "c", "verdict": verdict, "held": True, "commit": str(folder)}
    (folder/"tab01.json").write_text(json.dumps(about))
    return folder


def test_same_numbers(tmp_path, capsys):
    old = figures(tmp_path/"old", ["61.50", "62"])
    assert same_numbers.compare(old, figures(tmp_path/"same", ["61.5", "62.0"], more=",x")) == 0
    assert "new" in capsys.readouterr().out
    for name, values in (("other", ["61.5", "62.1"]), ("fewer", ["61.5"])):
        assert same_numbers.compare(old, figures(tmp_path/name, values)) == 1
    assert "line 3, mean: 62 before, 62.1 now" in capsys.readouterr().out
    words = figures(tmp_path/"words", ["61.5", "62"], "It holds: 61.5")
    assert same_numbers.compare(old, words) == 1
    assert same_numbers.compare(old, words, only_numbers=True) == 0
    (words/"tab01.csv").unlink()
    assert same_numbers.compare(old, words, only_numbers=True) == 1


def test_same_bytes():
    before = {"a": {"images": "1", "accuracy": [1.0]}, "b": {"images": "2"}}
    assert not list(same_bytes.differences(before, json.loads(json.dumps(before))))
    after = {"a": {"images": "3", "accuracy": [1.0]}}
    assert list(same_bytes.differences(before, after)) == ["a: images differ", "b: only before"]
    assert len(same_bytes.experiments()) > 30


def test_migration_renames_fields_and_leaves_tensors(tmp_path):
    from trustdd.core.experiment import Experiment, run_name, to_dict
    exp = Experiment(preset="smoke", outliers="poe", outliers_per_slot=1)
    before = to_dict(exp) | {"opc": 1, "metric": "ours", "lr_lr": 0, "syn_steps": 0}
    del before["outliers_per_slot"]
    folder = tmp_path/"smoke"/"digits"/"dsa-poe"/"ipc10"/"seed0-0"
    other = folder/"networks"/"1"
    other.mkdir(parents=True)
    (folder/"config.json").write_text(json.dumps(before))
    (folder/"distilled.safetensors").write_bytes(b"as it is")
    lenet = before | {"model": "lenet", "changed_from": {"model": "convnet"}}
    (other/"config.json").write_text(json.dumps(lenet))
    costs = tmp_path/"costs"/"smoke"/"0.json"
    costs.parent.mkdir(parents=True)
    costs.write_text(json.dumps({"asked": {"experiments": [before], "iterations": 0}, "costs": []}))
    assert migrate_published.migrate(tmp_path) == (3, 2)
    assert migrate_published.migrate(tmp_path) == (0, 0)
    now = tmp_path/run_name(exp)
    assert json.loads((now/"config.json").read_text()) == to_dict(exp)
    assert (now/"distilled.safetensors").read_bytes() == b"as it is"
    changed = json.loads((now/"networks"/"1"/"config.json").read_text())
    assert changed.pop("changed_from") == {"model": "convnet"}
    assert changed == to_dict(exp) | {"model": "lenet"}
    moved, = costs.parent.glob("*.json")
    assert json.loads(moved.read_text())["asked"]["runs"] == [run_name(exp)]


# --- making it

def test_which_python_will_do():
    assert check_python.advice((3, 9))[1] is None
    for minor in range(10, 15): assert check_python.advice((3, minor)) == ("", "-c constraints.txt")
    said, words = check_python.advice((3, 15))
    assert words == "" and "untried" in said
    assert SETTINGS["min_python"] == "3.10"


def test_what_is_asked_for_alone_is_found():
    words = list(only.commands(ROOT, ["poe", "resume"]))
    assert any("poe" in str(w[-1]) for w in words) and any("test_resume.py" in str(w[-1]) for w in words)
    assert not any("paper" in Path(w[-1]).parts for w in words)
    with pytest.raises(SystemExit, match="nosuch"): list(only.commands(ROOT, ["nosuch"]))


@pytest.mark.parametrize("chapters, tests", [(0, 0), (0, 1), (2, 0), (2, 1)])
def test_a_part_that_fails_fails_the_whole(capfdbinary, chapters, tests):
    "And what the chapters said comes last, whatever its letters."
    def part(status, word): return [sys.executable, "-c", f"import sys; sys.stdout.buffer.write({word!r}); sys.exit({status})"]
    assert all_tests.together(part(0, b""), part(chapters, b"chapters \xff"), part(tests, b"tests ")) == (chapters == tests == 0)
    out = capfdbinary.readouterr().out
    assert out.startswith(b"tests ") and out.endswith(b"chapters \xff")


def test_a_disagreement_ends_the_tests():
    began, wait, fail = time.monotonic(), [sys.executable, "-c", "import time; time.sleep(60)"], [sys.executable, "-c", "raise SystemExit(1)"]
    assert not all_tests.together(fail, wait, wait) and time.monotonic() - began < 30


@pytest.fixture(scope="module")
def fresh():
    "What a fresh process says: seconds of imports, and which heavy packages they loaded."
    names = sorted(n for n in count.modules(PACKAGE) if not n.endswith("__main__"))
    done = python("-c", f"""
import json, sys, time
times = [time.perf_counter()]
import trustdd
light = [m for m in {HEAVY} if m in sys.modules]
times.append(time.perf_counter())
import torch, torchvision
times.append(time.perf_counter())
trustdd.Experiment, trustdd.distill, trustdd.evaluate
times.append(time.perf_counter())
import {', '.join(names)}
print(json.dumps(dict(times=times, light=light, all=[m for m in {HEAVY} if m in sys.modules])))
""")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_costs_little_beyond_torch(fresh):
    start, ours, torchs, used = fresh["times"]
    assert ours - start <= 0.3 * (torchs - ours), f"import trustdd takes {ours - start:.2f} s"


def test_import_loads_nothing_for_plots_or_notebooks(fresh):
    assert not fresh["light"]


def test_every_module_imports_without_plots_or_notebooks(fresh):
    assert not fresh["all"]


def test_versions_agree():
    assert trustdd.__version__ == SETTINGS["version"]
    citation = (ROOT/"CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {SETTINGS['version']}\n" in citation
    assert f"## {SETTINGS['version']}" in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_holds_the_package_and_its_notebooks(tmp_path):
    "And nothing else: not the chapters, no figures, no tests."
    source = tmp_path/"source"
    source.mkdir()
    shutil.copytree(PACKAGE, source/"trustdd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT/"nbs"/"paper", source/"nbs"/"paper", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in "setup.py pyproject.toml settings.ini MANIFEST.in LICENSE README.md".split():
        if (ROOT/name).exists(): shutil.copy(ROOT/name, source)
    how = ["--no-isolation"] if find_spec("setuptools") else []
    done = python("-m", "build", "--wheel", *how, "--outdir", str(tmp_path/"dist"), str(source))
    assert done.returncode == 0, done.stdout + done.stderr
    wheel, = (tmp_path/"dist").glob(f"trustdd-{SETTINGS['version']}-*.whl")
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if ".dist-info/" not in n}
        entry = z.read(f"trustdd-{SETTINGS['version']}.dist-info/entry_points.txt").decode()
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    notebooks = {f"trustdd/paper/{p.name}" for p in (ROOT/"nbs"/"paper").glob("[a-z]*.*")}
    assert len(notebooks) > 30 and held == {p.relative_to(ROOT).as_posix() for p in files} | notebooks
    assert SETTINGS["console_scripts"] in entry.replace(" = ", "=")
    with zipfile.ZipFile(wheel) as z: z.extractall(tmp_path/"site")
    (tmp_path/"user").mkdir() # no clone
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRUSTDD_")} | {"PYTHONPATH": str(tmp_path/"site")}
    asked = [sys.executable, "-m", "trustdd", "paper", "--preset", "smoke", "--only", "fig02,tab05", "--list-runs"]
    said = subprocess.run(asked, cwd=tmp_path/"user", env=env, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith(("trustdd run ", "trustdd buffers ")) and not list((tmp_path/"user").iterdir()), said


# --- the command line

COMMANDS = [["--version"], ["--help"], *([c, "--help"] for c in ("list", "distill", "evaluate", "paper"))]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_command_line_answers(args, capfd):
    status = None
    with contextlib.suppress(SystemExit): status = main(args)
    said = capfd.readouterr().out
    expected = SETTINGS["version"] if args == ["--version"] else args[0] if len(args) > 1 else "distill"
    assert status in (0, None) and expected in said


def test_in_a_process_of_its_own_a_wrong_command_is_one_line_and_status_2():
    done = python("-m", "trustdd", "distill", "--method", "dsaa", stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "dsaa" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_a_definition_has_an_example_and_checks_are_visible():
    books = [count_prose.cells_of(p) for p in count_prose.chapters(ROOT)]
    without, defined = zip(*map(count_prose.without_use, books))
    assert sum(defined) > 400 and sum(map(len, without)) < 0.2 * sum(defined), without
    checked = [c for book in books for c in count_prose.checks(book)]
    assert len(checked) > 200 and sum(c.hidden for c in checked) < 0.3 * len(checked)


def test_a_definition_without_an_example_is_found():
    def cell(text): return count_prose.Cell(dict(cell_type="code", source=[text]))
    book = [cell("#| export\ndef f(): pass"), cell("#| hide\nf()"), cell("#| export\ndef g(): pass"), cell("g()")]
    assert count_prose.without_use(book) == (["f"], 2)


def test_a_chapter_whose_outputs_are_older_than_its_code_is_named():
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    import outputs
    def chapter(said, err="a warning"):
        given = [new_output("stream", name="stdout", text=said), new_output("stream", name="stderr", text=err),
                 new_output("execute_result", data={"text/plain": "<odd at 0x7f0>"})]
        return new_notebook(cells=[new_code_cell("print(pool)", outputs=given)])
    assert not list(outputs.differences(chapter("4 slots"), chapter("4 slots", err="another")))
    (source, lines), = outputs.differences(chapter("4 slots"), chapter("5 slots"))
    assert source == "print(pool)" and lines[1:] == ["-4 slots", "+5 slots"]
    def drawn(pixels):
        output = new_output("display_data", data={"image/png": base64.b64encode(pixels).decode(), "text/plain": "<Figure size 100x100 with 1 Axes>"})
        return new_notebook(cells=[new_code_cell("plot(pool)", outputs=[output])])
    assert not list(outputs.differences(drawn(b"a"), drawn(b"a")))
    (source, lines), = outputs.differences(drawn(b"a"), drawn(b"b"))
    assert source == "plot(pool)" and len(lines) == 3 and all("a picture, pixels" in line for line in lines[1:])
