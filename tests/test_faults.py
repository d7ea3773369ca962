"What goes wrong around a command: folders and devices of others, processes left behind, locales, closed streams."
import json, os, shutil, signal, stat, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import content

from test_bad_input import notebook
from trustdd.core.checks import UserError
from trustdd.core.storage import atomic_write
from trustdd.data.distilled_set import DistilledSet
from trustdd.reproduction.cli import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import kills
SMALL = "--dataset digits --preset smoke --ipc 1 --iterations 1 --n-nets 1 --epochs 1 --n-test 20 --ood gaussian --device cpu".split()
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def made(project):
    "A distilled set of this test's project."
    assert main(["distill", *SMALL, "--out", "set.safetensors"]) == 0
    return project/"set.safetensors"


def start(*words, cwd=None, **kw):
    kw = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") | kw
    return subprocess.Popen([sys.executable, "-m", "trustdd", *map(str, words)], env=kw.pop("env", ENV), cwd=cwd, start_new_session=True, **kw)


# --- what is not ours

def test_nothing_of_the_users_is_deleted(made, project):
    "A folder training, a hidden folder and files of one's own beside the results stay, whatever is written there."
    for name in ("training/photo.png", "validation/photo.png", "networks/notes.txt", ".hidden.part/x", "checkpoint.txt", ".notes.part"):
        (project/name).parent.mkdir(parents=True, exist_ok=True)
        (project/name).write_text("mine")
    before = content(project)
    assert main(["evaluate", str(made), "--device", "cpu", "--out", "."]) == 0
    after = content(project)
    assert {k: after.get(k) for k in before} == before
    assert {k.split("/")[0] for k in set(after) - set(before)} == {"report.json", "ood.csv", "logits.safetensors"}
    assert main(["evaluate", str(made), "--device", "cpu", "--out", "."]) == 0 # once more, over the results
    assert {k: content(project).get(k) for k in before} == before


def test_a_hidden_folder_of_somebody_else_is_refused(made, project, refused):
    (project/".trustdd").mkdir()
    (project/".trustdd"/"notes.txt").write_text("mine")
    assert ".trustdd was not made by this program" in refused("evaluate", made, "--device", "cpu", "--out", ".")


@pytest.mark.parametrize("name", ["report.json", "ood.csv", "logits.safetensors"])
def test_no_file_of_others_becomes_a_result(made, refused, project, name):
    "evaluate and compare replaced your report.json, or your index.html, without a word."
    (project/"mine").mkdir()
    (project/"mine"/name).write_text("my own")
    assert f"{name} is there, and is not a result" in refused("evaluate", made, "--out", "mine", "--device", "cpu")
    (project/"mine"/name).rename(project/"mine"/("index.html" if name == "ood.csv" else "comparison.csv"))
    assert "is not a comparison" in refused("compare", made, "--out", "mine", "--device", "cpu")


@pytest.mark.parametrize("words", [["distill", *SMALL[2:], "--dataset", "nosuch", "--out", "new/x.safetensors"], ["compare", "SET", "--ood", "nosuch", "--out", "new"],
                                   ["reject", "SET", "--accept", "2", "--out", "new/model.safetensors"], ["evaluate", "SET", "--ood", "nosuch", "--out", "new"],
                                   ["run", *SMALL, "--ipc", "101", "--runs", "new"]], ids=lambda words: words[0])
def test_a_refused_request_leaves_no_folder(made, refused, project, words):
    "Not even an empty one."
    refused(*(str(made) if w == "SET" else w for w in words))
    assert not (project/"new").exists()


def test_a_run_keeps_its_own_report(project, refused):
    "An evaluation into a run's folder was from then on the run's result."
    words = ["run", *SMALL, "--method", "random", "--runs", "runs"]
    for flag in ("--iterations",): del words[words.index(flag):words.index(flag) + 2]
    assert main(words) == 0
    folder = next((project/"runs").rglob("report.json")).parent
    assert "is a run; name another folder" in refused("evaluate", folder, "--out", folder, "--epochs", "2", "--device", "cpu")


@pytest.mark.parametrize("words", [["list", "--runs", "file"], ["distill", *SMALL, "--runs", "file"]], ids=lambda words: words[0])
def test_a_file_is_no_run_store(refused, project, monkeypatch, words):
    "The list said that there are no runs in it."
    (project/"file").write_text("mine")
    assert f"{project/'file'} is no folder" in refused(*words)
    if words[0] == "list":
        monkeypatch.setenv("TRUSTDD_RUNS", "file")
        assert "is no folder" in refused("list")


@pytest.mark.parametrize("where", ["a pipe", "a device", "a socket", "a folder", "a link to a device"])
def test_only_regular_files_are_replaced(made, project, capfd, where):
    "A result that is to go to a device is refused, and the device is what it was."
    path = project/"target"
    if where == "a pipe": os.mkfifo(path)
    if where == "a device": path = Path("/dev/null")
    if where == "a folder": path.mkdir()
    if where == "a link to a device": path.symlink_to("/dev/null")
    if where == "a socket":
        import socket
        with socket.socket(socket.AF_UNIX) as s:
            try: s.bind(str(path))
            except OSError: pytest.skip("the folder's name is too long for a socket")
    kind = stat.S_IFMT(os.lstat(path).st_mode)
    capfd.readouterr()
    assert main(["distill", *SMALL, "--out", str(path)]) == 2
    assert str(path) in capfd.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match="target|null"): atomic_write(path, "x")
    assert stat.S_IFMT(os.lstat(path).st_mode) == kind


def test_links_are_followed_and_permissions_kept(made, project):
    (project/"store").mkdir()
    target, link = project/"store"/"real.safetensors", project/"link.safetensors"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert main(["distill", *SMALL, "--out", str(link)]) == 0
    assert link.is_symlink() and target.read_bytes() == made.read_bytes() and stat.S_IMODE(target.stat().st_mode) == 0o640
    dangling = project/"new.safetensors"
    dangling.symlink_to(project/"store"/"later.safetensors")
    assert main(["distill", *SMALL, "--out", str(dangling)]) == 0
    assert dangling.is_symlink() and (project/"store"/"later.safetensors").read_bytes() == made.read_bytes()


def test_many_processes_write_one_file(tmp_path):
    "Each write is whole, none fails, and nothing is left beside, though all have the same process number somewhere."
    code = """
import os, sys
from trustdd.core.storage import atomic_write
os.getpid, writers = lambda: 7, []
for letter in "abc":
    writers.append(os.fork())
    if not writers[-1]:
        for i in range(40): atomic_write(sys.argv[1], letter * 50_000)
        sys.exit()
print([os.waitpid(w, 0)[1] for w in writers])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path/"file"], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[0, 0, 0]\n", done
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path/"file").read_text() in [letter * 50_000 for letter in "abc"]


def test_make_clean_removes_what_is_beside_the_makefile_only(tmp_path):
    "Called from another folder, it leaves that folder alone."
    if not shutil.which("make"): pytest.skip("there is no make")
    own, other = tmp_path/"project", tmp_path/"other"
    for folder in (own, other):
        for name in ("build", "dist", "figures/smoke", "nbs/__pycache__", "tests", "tools", "trustdd/core", "benchmarks", "runs"): (folder/name).mkdir(parents=True)
    shutil.copy(ROOT/"Makefile", own)
    (own/"trustdd"/"core"/"storage.py").touch()
    def folders(where): return {str(p.relative_to(where)) for p in where.rglob("*") if p.is_dir()}
    before = folders(other)
    subprocess.run(["make", "-f", str(own/"Makefile"), "clean"], cwd=other, check=True, capture_output=True)
    assert folders(other) == before
    subprocess.run(["make", "clean"], cwd=own, check=True, capture_output=True)
    assert folders(own) == {"figures", "nbs", "tests", "tools", "trustdd", "trustdd/core", "benchmarks", "runs"}


# --- results that belong together

@pytest.mark.parametrize("moment", [0, 1, 2])
def test_an_evaluation_killed_over_older_results(made, project, monkeypatch, moment):
    "Never the report of one evaluation beside the logits of another: the old one whole, or no report."
    assert main(["evaluate", str(made), "--device", "cpu", "--out", "out", "--epochs", "1"]) == 0
    before, count = content(project/"out"), iter(range(100))
    class Killed(BaseException): pass
    import trustdd.core.storage as storage
    replace = os.replace
    def dying(a, b):
        if Path(b).parent.name == "out" and next(count) == moment: raise Killed
        return replace(a, b)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(storage.os, "replace", dying)
        main(["evaluate", str(made), "--device", "cpu", "--out", "out", "--epochs", "2"])
    after = {k: v for k, v in content(project/"out").items() if not k.startswith(".")}
    assert "report.json" not in after or after == before
    assert main(["evaluate", str(made), "--device", "cpu", "--out", "out", "--epochs", "2"]) == 0
    assert main(["evaluate", str(made), "--device", "cpu", "--out", "straight", "--epochs", "2"]) == 0
    assert content(project/"out") == content(project/"straight")


# --- what cannot be said, or read

LOCALES = {"ASCII": dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), "Latin-1": dict(PYTHONIOENCODING="latin-1"), "streams of ASCII": dict(PYTHONIOENCODING="ascii:strict")}

@pytest.mark.parametrize("locale", LOCALES)
def test_locales_without_the_sign(project, locale):
    "The result is printed with another sign, and nothing else is different."
    child = start("run", *SMALL, "--runs", "runs", cwd=project, env={**ENV, **LOCALES[locale]})
    out, err = child.communicate(timeout=200)
    assert child.returncode == 0 and out.startswith("accuracy"), err
    (project/"settings.ini").write_text("[DEFAULT]\nlib_name = trustdd\n# ±\n", encoding="utf-8")
    child = start("run", "--dataset", "nowhere±", "--runs", "runs", cwd=project, env={**ENV, **LOCALES[locale]})
    assert child.wait(timeout=100) == 2 and child.stderr.read().startswith("trustdd: ")


SIGNS = """import pandas as pd
from trustdd.reproduction.tables import save_table
about = dict(dataset="digits", preset=preset, seeds=[0], n_nets=1, device="cpu")
frame = pd.DataFrame([dict(cell="36.4 ± 0.8 · ä")])
save_table(frame, out, "tab01", about, "A caption · ±", claim="λ ≥ 0", verdict="The claim held: 36.4 ± 0.8 · ä")
print("±")"""


def test_figures_and_their_page_in_a_locale_without_the_sign(project, capfd):
    "paper failed in the end, and the page said Â·. Every file is what it is elsewhere; only the terminal gets another sign."
    paper = project/"nbs"/"paper"
    paper.mkdir(parents=True)
    shutil.copy(ROOT/"nbs"/"paper"/"fig03_corruptions.ipynb", paper)
    notebook(paper/"tab01_signs.ipynb", SIGNS)
    words = ["paper", "--preset", "smoke", "--out"]
    child = start(*words, "figures/ascii", cwd=project, env={**ENV, **LOCALES["ASCII"]}, errors="strict")
    out, err = child.communicate(timeout=400)
    assert child.returncode == 0 and "2 of 2 made" in out and "36.4 ? 0.8 ? ?" in out and "Traceback" not in err, (out, err)
    assert main([*words, "figures/usual"]) == 0 and "36.4 ± 0.8 · ä" in capfd.readouterr().out
    made, usual = content(project/"figures"/"ascii"), content(project/"figures"/"usual")
    plain = {name for name in usual if name.endswith((".csv", ".md", ".tex", ".json", ".png", ".pdf"))} # the page says where they are
    assert len(plain) >= 8 and set(made) == set(usual) and {n: made[n] for n in plain} == {n: usual[n] for n in plain}
    for name in ("tab01.csv", "tab01.md", "tab01.json", "notebooks/tab01.ipynb", "index.html"): assert "36.4 ± 0.8 · ä" in made[name].decode("utf-8"), name
    assert "Figure 3 · Pseudo-outliers" in made["index.html"].decode("utf-8") and b'<meta charset="utf-8">' in made["index.html"]


def test_closed_streams_and_readers_who_left(made, project):
    "No stderr, no stdout, a reader that is gone: the status is honest, and no traceback appears."
    words = f"{sys.executable} -m trustdd"
    def shell(line): return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENV, cwd=project, timeout=200)
    assert shell(f"{words} list 2>&-").returncode == 0
    assert shell(f"{words} list >&-").returncode == 0
    assert shell(f"{words} distill --method nothing 2>&-").returncode == 2
    assert shell(f"{words} run {' '.join(SMALL)} --runs r 2>&-").returncode == 0
    done = shell(f"{words} list | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode in (0, 141) and not done.stderr, done
    full = shell(f"{words} list > /dev/full")
    assert full.returncode == 1 and full.stderr.count("\n") == 1 and "space" in full.stderr


def test_files_that_cannot_be_read_are_a_wrong_request(made, project, refused, monkeypatch):
    "Links that lead nowhere or in a circle, names too long, a set without a record: one line, status 2."
    (project/"loop").symlink_to("loop")
    (project/"broken").symlink_to("nowhere")
    for name in ("loop", "broken", "a" * 300, "no\nfile", "caf\udce9"): refused("evaluate", name)
    for name in ("loop/x.safetensors", "a" * 300 + ".safetensors"): refused("distill", *SMALL, "--seed", "1", "--out", name)
    refused("evaluate", made, "--out", "loop")


def test_a_set_that_says_nothing_of_its_experiment(made, refused):
    "By its own checksum the file is whole."
    from dataclasses import replace
    syn = DistilledSet.load(made)
    for record in ({}, {"experiment": {}}, [1]):
        replace(syn, provenance=record).save("bare.safetensors")
        assert "which experiment made it" in refused("evaluate", "bare.safetensors")


def test_unreadable_files_are_a_wrong_request(made, project, capfd):
    if os.geteuid() == 0: pytest.skip("the superuser can read all files")
    made.chmod(0)
    assert main(["evaluate", str(made)]) == 2 and str(made) in capfd.readouterr().err


@pytest.mark.parametrize("how", ["a folder", "a list", "bytes", "cut", "a loop"])
def test_the_list_goes_on_past_a_damaged_configuration(made, project, capfd, how):
    "One broken run folder is called damaged; the others are listed, and asking for the run says which file it is."
    config, = (project/"runs").rglob("config.json")
    other = project/"runs"/"another"
    other.mkdir()
    (other/"config.json").write_bytes(config.read_bytes())
    config.unlink()
    if how == "a folder": config.mkdir()
    if how == "a loop": config.symlink_to("config.json")
    if how in ("a list", "bytes", "cut"): config.write_bytes({"a list": b"[]", "bytes": bytes(range(256)), "cut": b'{"preset": "smo'}[how])
    capfd.readouterr()
    assert main(["list"]) == 0
    states = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert "begun" in states and "finished" not in states and (how == "a loop" or "damaged" in states)
    if how != "a loop": assert main(["distill", *SMALL]) == 2 and "config.json" in capfd.readouterr().err


@contextmanager
def within(seconds):
    "What waits for longer is an error, not a test that never ends."
    def late(*_): raise TimeoutError("still waiting")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, before)


def pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def test_a_pipe_in_the_run_store_is_no_file(project, capfd):
    "Whoever opened config.json or report.json waited for ever, and so did each command that looks into the store."
    words = ["run", *SMALL, "--outliers", "poe"]
    assert main(words) == 0
    folder = next((project/"runs").rglob("report.json")).parent
    pipe(project/"runs"/"buffers"/"digits"/"some"/"buffer.json")
    for name in ("config.json", "images.json", "report.json", "distilled.safetensors", "log.jsonl", "logits.safetensors", "scores.safetensors", "checkpoint.safetensors"):
        kept = (folder/name).read_bytes() if (folder/name).exists() else None
        pipe(folder/name)
        for asked in (["list"], words, ["distill", *words[1:]], ["show", str(folder)], ["status", "--preset", "smoke", "--runs", "runs", "--only", "fig02"]):
            capfd.readouterr()
            with within(100): status = main(asked)
            out, err = capfd.readouterr()
            assert status in (0, 2) and "Traceback" not in err, (name, asked, err)
            if asked == ["list"]: assert [line.split()[0] for line in out.splitlines()[1:2]] == ["damaged" if name in ("config.json", "report.json") else "finished"]
            if asked == words and name.endswith(".json"): assert status == 2 and name in err.splitlines()[-1]
        (folder/name).unlink(missing_ok=True)
        if kept is not None: (folder/name).write_bytes(kept)


@pytest.mark.parametrize("name", ["fig02.csv", "fig02.json", "fig02.png", "tab01.md", ".stamps/fig02"])
def test_a_pipe_among_the_figures_is_no_file(project, capfd, refused, name):
    "explain, gallery and status say so, or go on without it."
    shutil.copytree(ROOT/"figures"/"quick", project/"figures"/"quick", ignore=lambda folder, names: [n for n in names if not n.startswith(("fig02", "tab01", "quick"))])
    pipe(project/"figures"/"quick"/name)
    def ask(*words):
        capfd.readouterr()
        with within(100): status = main([*words])
        err = capfd.readouterr().err
        assert status in (0, 2) and "Traceback" not in err and err.count("\n") <= 1, (words, err)
        return status, err
    status, err = ask("explain", "figures/quick/fig02.csv", "0", "left")
    if name in ("fig02.csv", "fig02.json"): assert status == 2 and "needs to be a figure's or table's numbers" in err
    status, err = ask("gallery", "--figures", "figures")
    if not name.startswith("."): assert name == "fig02.csv" or status == 2 and f"{name} is a pipe" in err
    ask("status", "--out", "figures/quick", "--only", "fig02")


def test_no_page_of_others_is_replaced(project, capfd):
    "An index.html of one's own in the folder of figures stays."
    from trustdd.reproduction.gallery import write_gallery
    shutil.copytree(ROOT/"figures"/"quick", project/"mine", ignore=lambda folder, names: [n for n in names if not n.startswith("tab14")])
    (project/"mine"/"index.html").write_text("<title>my site</title>")
    with pytest.raises(UserError, match="index.html is not a page of figures"): write_gallery(project/"mine")
    assert (project/"mine"/"index.html").read_text() == "<title>my site</title>"
    (project/"mine"/"index.html").unlink()
    page = write_gallery(project/"mine")
    assert write_gallery(project/"mine") == page # its own is replaced


@pytest.mark.parametrize("option", ["--runs", "--out", "--plan"])
def test_an_empty_place_is_none(refused, option):
    "It stood for the project's own folder, without a word."
    words = {"--runs": ["list"], "--out": ["distill", *SMALL], "--plan": ["paper", "--preset", "smoke"]}[option]
    assert f"{option} '' names nothing" in refused(*words, option, "")


@pytest.mark.parametrize("words", [["list", "--runs"], ["distill", *SMALL, "--runs"], ["distill", *SMALL, "--out"], ["evaluate"], ["gallery", "--figures"],
                                   ["paper", "--out"], ["distill", "--ood"], ["distill", "--dataset"], ["show"], ["explain", "x", "mean"]], ids=" ".join)
def test_a_name_with_a_zero_byte(refused, words):
    "The system's own words, \"embedded null byte\", with status 1."
    assert "zero byte" in refused(*words, "a\0b")


@pytest.mark.parametrize("words", [["list", "--runs"], ["distill", *SMALL, "--runs"], ["show"], ["gallery", "--figures"], ["distill", *SMALL[2:], "--dataset"],
                                   ["distill", *SMALL, "--outliers", "oe", "--aux"], ["compare"]], ids=" ".join)
def test_a_name_that_is_too_long(refused, words): refused(*words, "a" * 300)


@pytest.mark.parametrize("name, below", [("..", "mine/cat"), (".", "mine"), ("../", "mine/cat"), ("..@8", "mine/cat")])
def test_the_folder_above_is_a_data_set_with_a_name(project, monkeypatch, name, below):
    "`..` was looked for in the data folder, and its runs were put beside the store's presets."
    import numpy as np
    from PIL import Image
    for i in range(8):
        (project/"mine"/("cat", "dog")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(project/"mine"/("cat", "dog")[i % 2]/f"{i}.png")
    monkeypatch.chdir(project/below)
    assert main(["distill", *SMALL[2:], "--dataset", name, "--runs", str(project/"runs"), "--out", str(project/"set.safetensors")]) == 0
    assert DistilledSet.load(project/"set.safetensors").shape == (3, 8, 8) if "@" in name else (3, 16, 16)
    config, = (project/"runs").rglob("config.json")
    assert json.loads(config.read_text())["dataset"] == str(project/"mine") + "@8" * ("@" in name)
    parts = config.relative_to(project/"runs").parts
    assert len(parts) == 6 and parts[0] == "smoke" and parts[1].startswith("mine")


@pytest.mark.parametrize("words", [["distill", *SMALL[:-4], "--ood", "skimage-text"], ["distill", *SMALL, "--outliers", "oe"], ["evaluate"]], ids=["OOD", "auxiliary", "usual sets"])
def test_without_scikit_image(made, project, monkeypatch, refused, words):
    "An attribute of None was missed."
    from trustdd.data import catalog, packaged
    from trustdd.reproduction.cli import main
    if words == ["evaluate"]:
        assert main(["distill", *SMALL[:-4], "--device", "cpu", "--out", "usual.safetensors"]) == 0
        words = ["evaluate", "usual.safetensors"]
    for cache in (packaged._patches, catalog._outside): cache.cache_clear()
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert "scikit-image, which is not installed; install scikit-image" in refused(*words)


def test_one_network_has_no_spread_and_one_image_no_auroc(made, project, capfd, refused):
    "It was given as ± 0.0 over 1 networks; an OOD set of one image as 50.0 ± 70.7."
    import numpy as np
    from PIL import Image
    capfd.readouterr()
    for words in (["run", *SMALL], ["evaluate", made, "--device", "cpu"]):
        assert main([str(w) for w in words]) == 0
        out = capfd.readouterr().out
        assert "1 network" in out and "±" not in out and "networks" not in out and "nan" not in out
    assert main(["run", *SMALL, "--n-nets", "2"]) == 0
    assert "(2 networks)" in (out := capfd.readouterr().out) and out.count("±") == 2
    (project/"odd").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 9, dtype=np.uint8) + np.eye(8, k=i, dtype=np.uint8)).save(project/"odd"/f"{i}.png")
        if i == 0: assert "ood = 'odd' has a single image" in refused("evaluate", made, "--ood", "./odd", here=project/"odd")
    assert main(["evaluate", str(made), "--ood", "./odd", "--device", "cpu"]) == 0


def test_a_comparison_on_noise_alone_has_no_nan(made, project):
    "FPR95 is a mean over near and far sets, and there was none: nan ± nan."
    from trustdd.reproduction.comparison import compare
    found = compare([made], "out", n_nets=1, references=(), ood=("gaussian",), device="cpu")
    row, = found.rows
    assert row["fpr95"] is None and row["near"] is None and row["noise"][0] > 0 and "nan" not in str(found)


def test_the_list_says_what_is_there(made, project, capfd):
    "A finished distillation was called begun; there was no header, and no AUROC."
    assert main(["run", *SMALL, "--seed", "1"]) == 0
    assert main(["run", *SMALL, "--seed", "2", "--ood", "skimage-text"]) == 0
    capfd.readouterr()
    assert main(["list"]) == 0
    head, *rows = capfd.readouterr().out.splitlines()
    assert head.split() == ["state", "accuracy", "AUROC", "run"]
    assert [row.split()[0] for row in rows] == ["distilled", "finished", "finished"]
    cells = [row.split()[1:3] for row in rows]
    assert cells[0] == ["–", "–"] and cells[1][1] == "–" and 0 <= float(cells[1][0]) <= 100 and 0 < float(cells[2][1]) <= 100
    assert {row.index("smoke/") for row in rows} == {head.index("run")}


# --- parts of a run that are gone

@pytest.mark.parametrize("lost", ["report.json", "report.json ood.csv", "report.json logits.safetensors", "report.json distilled.safetensors log.jsonl",
                                  "report.json scores.safetensors", "report.json config.json images.json"])
def test_what_is_made_again_has_its_keys_in_the_same_order(project, one_commit, lost):
    "The keys of report.json came in another order when the set had been read from its file."
    words = ["run", *SMALL, "--outliers", "poe", "--runs", "runs"]
    assert main(words) == 0
    folder = next((project/"runs").rglob("report.json")).parent
    def kept(): return {k: v for k, v in content(folder).items() if not k.startswith(".")}
    before = kept()
    for name in lost.split(): (folder/name).unlink(missing_ok=True)
    assert main(words) == 0
    after = kept()
    assert set(after) == set(before)
    def order(x): return [(k, order(v)) for k, v in x.items()] if isinstance(x, dict) else [order(v) for v in x] if isinstance(x, list) else ""
    assert order(json.loads(after["report.json"])) == order(json.loads(before["report.json"])) # values are equal but for seconds
    for name in ("config.json", "images.json", "log.jsonl", "ood.csv"): assert after[name] == before[name]


# --- signals and processes

@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("more", [[], ["--select", "best_on_test"]], ids=["last", "best on test"])
def test_a_training_without_a_folder_hears_a_signal(made, project, forked, how, more):
    "It was deaf until the second one: nothing is kept, so nothing looked at the clock."
    child = forked("evaluate", made, "--device", "cpu", "--epochs", "1000000", *more, cwd=project, env=ENV)
    while "epoch/s" not in child.err.read_text(): assert child.poll() is None; time.sleep(0.02)
    child.send_signal(getattr(signal, how))
    _, err = child.communicate(timeout=30)
    line = err.splitlines()[-1]
    assert child.returncode == 75 and "asked to stop" in line and "not kept" in line and "Traceback" not in err, err
    assert {p.name for p in project.iterdir()} == {"settings.ini", "runs", "set.safetensors"}


def of_session(number):
    "The processes of a session, but for those that have ended."
    found = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try: words = stat_file.read_text().rpartition(")")[2].split()
        except OSError: continue
        if int(words[3]) == number and words[0] != "Z": found.append(int(stat_file.parent.name))
    return found


def gone(number, within=10):
    ends = time.monotonic() + within
    while of_session(number) and time.monotonic() < ends: time.sleep(0.1)
    return not of_session(number)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
EXPERTS = "buffers --dataset digits --preset smoke --ipc 1 --experts 4 --train-epochs 4000 --device cpu --workers 2 --runs runs".split()

@linux
@pytest.mark.parametrize("how", ["SIGKILL", "SIGHUP", "SIGTERM", "SIGTERM twice", "SIGHUP twice"])
def test_no_process_is_left(project, forked, how):
    "Whatever ends the command, its workers are gone within ten seconds, and the same command goes on."
    child = forked(*EXPERTS, cwd=project, env=ENV, copies=True)
    ends = time.monotonic() + 120
    while len(list((project/"runs").rglob("expert*.part"))) < 2: assert time.monotonic() < ends and child.poll() is None; time.sleep(0.1)
    assert len(of_session(child.pid)) >= 3
    child.send_signal(getattr(signal, how.split()[0]))
    if "twice" in how: time.sleep(0.7); child.send_signal(getattr(signal, how.split()[0]))
    _, err = child.communicate(timeout=30)
    assert gone(child.pid), (how, of_session(child.pid))
    assert "Traceback" not in err, err
    if how in ("SIGTERM", "SIGHUP"): assert child.returncode == 75 and "run the same command again to continue" in err.splitlines()[-1]


@linux
def test_figures_after_the_command_was_killed(project, forked):
    "SIGKILL to the command alone, while a notebook runs and while its workers compute: kernels and workers end, and the same command makes the same."
    paper = project/"nbs"/"paper"
    paper.mkdir(parents=True)
    shutil.copy(ROOT/"nbs"/"paper"/"fig02_msp_distributions.ipynb", paper)
    notebook(paper/"tab01_signs.ipynb", SIGNS, '\nruns:str = ""\nsettings:dict = {}')
    words = [*"paper --preset smoke --only fig02,tab01 --workers 2 --epochs 5 --n-nets 1 --no-page --out figures --runs".split()]
    def begin(store): return forked(*words, store, cwd=project, env=ENV, copies=True)
    def finish(store):
        child = begin(store)
        out, err = child.communicate(timeout=400)
        assert child.returncode == 0 and "2 of 2 made" in out, (out, err)
        made = {p.name: p.read_bytes() for p in (project/"figures").glob("*.csv")}
        assert set(made) == {"fig02.csv", "tab01.csv"}
        shutil.rmtree(project/"figures")
        return made
    straight = finish("straight")
    for place in ("figures/**/*.ipynb", "killed/**/config.json"):
        child, ends = begin("killed"), time.monotonic() + 300
        while not list(project.glob(place)) or len(kills.members(project)) < 2: assert time.monotonic() < ends and child.poll() is None; time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        assert not kills.left_after(project), place
        assert not (project/"figures"/"fig02.csv").exists()
    assert finish("killed") == straight


@linux
def test_a_long_path_for_temporary_files(project, forked):
    "The server that starts workers listens at a socket in that folder; the name of a socket has 107 bytes. The command ended with: AF_UNIX path too long."
    made = {}
    (project/("long" * 30)).mkdir()
    for name, folder in (("short", "/tmp"), ("long", project/("long" * 30))):
        child = forked(*EXPERTS[:EXPERTS.index("--train-epochs")], "--train-epochs", "2", "--device", "cpu", "--workers", "2", "--runs", name, cwd=project, env={**ENV, "TMPDIR": str(folder)}, copies=True)
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0 and gone(child.pid), err
        made[name] = [p.read_bytes() for p in sorted((project/name).rglob("expert*.safetensors"))]
    assert len(made["short"]) == 4 and made["short"] == made["long"]


@linux
def test_a_full_disk_for_temporary_files_does_not_deafen(project):
    "SIGTERM is heard where no temporary file can be made: status 75, with a checkpoint."
    words = [*SMALL, "--outliers", "poe", "--runs", "runs"]
    words[words.index("--iterations") + 1] = "100000"
    code = """
import sys, tempfile
make = tempfile.mkstemp
def full(*args, dir=None, **kw):
    if dir is None: raise OSError(28, "No space left on device")
    return make(*args, dir=dir, **kw)
tempfile.mkstemp = full
from trustdd.reproduction.cli import main
sys.exit(main())
"""
    child = subprocess.Popen([sys.executable, "-c", code, "run", *words], env=ENV, cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True)
    ends = time.monotonic() + 60
    while not list((project/"runs").rglob("config.json")): assert time.monotonic() < ends and child.poll() is None; time.sleep(0.1)
    while "it/s" not in child.stderr.read(40): assert time.monotonic() < ends and child.poll() is None
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 75, err
    assert list((project/"runs").rglob("checkpoint.safetensors"))


@linux
@pytest.mark.parametrize("loaded", ["/_ctypes", "libtorch_cpu", "libtorch_python"])
def test_interrupted_while_it_begins(project, loaded):
    "Ctrl-C while modules are imported is one line, not a traceback."
    child = start("list", cwd=project)
    while child.poll() is None and loaded not in Path(f"/proc/{child.pid}/maps").read_text(): time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and err == "trustdd: interrupted; run the same command again to continue\n", err
