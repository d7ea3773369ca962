"Fields that are added to experiments leave stored runs as they are: their names, their configuration, their sides."
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment, from_dict, run_name, to_dict
from trustdd.core.storage import project_root
from trustdd.reproduction.run_store import is_finished
from trustdd.reproduction.sides import side_folder

sys.path.insert(0, str(project_root()/"tools"))
STORE = project_root()/"published"
RUNS = [c.parent for c in sorted(STORE.rglob("config.json")) if not {"networks", "unfinished"} & set(c.parts)]


def test_a_published_run_is_still_the_one_asked_for():
    for folder in RUNS:
        stored = json.loads((folder/"config.json").read_text())
        exp = from_dict(stored)
        assert to_dict(exp) == stored
        assert run_name(exp) == str(folder.relative_to(STORE)).split("-images-")[0]
    assert is_finished(exp, folder)


@pytest.mark.parametrize("field", [dict(label_smoothing=0.1), dict(outlier_draw=1), dict(corruptions=["noise"]),
                                   dict(precision="bfloat16")])
def test_a_control_is_another_run(field):
    exp = Experiment(outliers="poe", ipc=1)
    folder = STORE/run_name(exp)
    other = from_dict(to_dict(exp) | field)
    assert run_name(other).startswith(f"{run_name(exp)}-")
    with pytest.raises(UserError, match=next(iter(field))): is_finished(other, folder)


def test_sides_at_the_papers_scale_keep_their_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUSTDD_DATA", str(tmp_path)) # no CIFAR-10: its images are part of the name
    def name(side, **fields): return side_folder(Experiment(preset="paper", ipc=1, **fields), side, Path("runs")).name
    for fields in ({}, dict(label_smoothing=0.1), dict(epochs=2000), dict(outliers="poe", outlier_draw=2)):
        assert name("images", **fields) == "cifar10-dsa-images-ipc1-seed0-039367b1"
    assert name("outliers", outliers="poe") == "cifar10-dsa-outliers-ipc1-seed0-c15f3373"


def test_kept_notebooks_have_the_code_of_today():
    "A figure whose notebook was changed is drawn again, in every preset."
    def code(path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "injected-parameters" not in c["metadata"].get("tags", [])]
    today = {p.stem.partition("_")[0]: code(p) for p in (project_root()/"nbs"/"paper").glob("*.ipynb")}
    kept = [p for preset in ("quick", "cifar", "long", "paper", "dm") for p in (project_root()/"figures"/preset/"notebooks").glob("*.ipynb")]
    assert len(kept) > 70 and not [p.relative_to(project_root()) for p in kept if code(p) != today[p.stem]]


def test_the_picture_of_gains_shows_what_table_1_compares():
    "The means of its points are the differences that Table 1 tests, which leaves kin out."
    import draw_gains
    for (preset, ipc), _ in draw_gains.PANELS.items():
        table = draw_gains.gains(preset, ipc)
        tests = {t["comparison"]: float(t["difference"]) for t in json.loads((project_root()/"figures"/preset/"tab01.json").read_text())["tests"]}
        for kind, rows in table.groupby("outliers"):
            assert len(rows) == len(draw_gains.ORDER) and ((rows.low < rows.gain) & (rows.gain < rows.high)).all()
            assert rows[~rows.kin].gain.mean() == pytest.approx(tests[f"{kind.upper()} over DD, IPC {ipc}"], abs=0.051)
    lines = [line for ax in draw_gains.picture().axes for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(lines) == 4 * len(draw_gains.ORDER)
    with Image.open(project_root()/"docs"/"gains.png") as kept: assert kept.text["Source"] == draw_gains.digest(), "python tools/draw_gains.py"
