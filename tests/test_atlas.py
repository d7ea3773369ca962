"After `make paper PRESET=P`: is everything there? Run as TRUSTDD_ATLAS=P pytest tests/test_atlas.py; without it only the notebooks are looked at."
import json, os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/"nbs"/"paper").glob("[a-z]*.ipynb"))
PRESET = os.environ.get("TRUSTDD_ATLAS")
KINDS = {"fig": ("png", "pdf", "csv", "json"), "tab": ("md", "tex", "csv", "json")}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_has_one_parameters_cell(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1


@pytest.mark.skipif(not PRESET, reason="TRUSTDD_ATLAS names no preset")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_made_its_files(notebook):
    "A picture or table, its numbers and its description, none of them empty; the description tells the preset."
    key = notebook.stem.split("_")[0]
    for kind in KINDS[key[:3]]:
        made = [p for p in (ROOT/"figures"/PRESET).glob(f"{key}*.{kind}") if p.stat().st_size]
        assert made, f"figures/{PRESET}/{key}*.{kind} is missing or empty"
        if kind == "json": assert all(json.loads(p.read_text(encoding="utf-8"))["preset"] == PRESET for p in made)


@pytest.mark.skipif(not PRESET, reason="TRUSTDD_ATLAS names no preset")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_kept_its_executed_notebook(notebook):
    "With outputs, but without times, warnings and this machine's folders."
    key = notebook.stem.split("_")[0]
    text = (ROOT/"figures"/PRESET/"notebooks"/f"{key}.ipynb").read_text(encoding="utf-8")
    nb = json.loads(text)
    outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
    assert outputs and not [o for o in outputs if o.get("name") == "stderr" or o["output_type"] == "error"]
    assert not [word for word in ("start_time", "iopub", str(ROOT), str(Path.home()) + "/") if word in text]
