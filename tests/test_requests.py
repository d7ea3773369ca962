"""What is asked is what is done: numbers, places and names mean the same at every door, and a request that cannot be
met is refused in one line before anything is made."""

import pytest

from conftest import ROOT
from trustdd.core.checks import UserError
from trustdd.core.storage import project_root, runs_root
from trustdd.reproduction.items import PaperItem
from trustdd.reproduction.plan import plan

PAPER = ROOT/"nbs"/"paper"


# --- numbers of the wrong kind, as parameters of notebooks

@pytest.mark.parametrize("field, value, said", [
    ("seeds", 0.5, "0.5"), ("seeds", "0,0", "twice"), ("ipc", 1.9, "1.9"), ("ipc", 0, "1 or more"),
    ("ipc", "1,1", "twice"), ("ipc", True, "True"), ("seeds", -1, "0 or more"), ("seeds", "1,,2", "1,,2"),
    ("seeds", [0, 0.5], "0,0.5")])
def test_numbers_of_the_wrong_kind_are_refused(field, value, said):
    with pytest.raises(UserError) as e: PaperItem("tab01", "smoke", **{field: value})
    assert said in str(e.value) and "\n" not in str(e.value)


def test_no_notebook_takes_another_number_for_a_wrong_one():
    "0 images per class were the preset's, in those notebooks that have a preset of their own."
    for value, said in ((0, "ipc = 0 must be"), (1.9, "1.9"), ("0,0", "twice")):
        for name, item in plan("quick", parameters=dict(ipc=value), folder=PAPER)["items"].items():
            assert said in item["problem"], (name, value, item)


def test_weights_and_outliers_per_slot_likewise():
    def problem(item, **given): return plan("quick", [item], parameters=given, folder=PAPER)["items"][item]["problem"]
    for item in ("fig11", "tab11"):
        assert "lams = 0 names no weight above 0" in problem(item, lams=0)
        assert not problem(item, lams=0.5) # as papermill hands it over
    assert "opcs = 0 names no number above 0" in problem("tab12", opcs=0) and "'0.5'" in problem("tab12", opcs=0.5)


# --- places

def test_the_settings_of_another_project_are_not_this_one(project, monkeypatch):
    "A `settings.ini` is a common name: only the one of this project says where its folders are."
    inner = project/"other"/"notes"
    inner.mkdir(parents=True)
    for text in ("[DEFAULT]\nlib_name = other\n", "[tool]\nname = trustdd\n", "", "[DEFAULT]\nlib_name = trustdd-fork\n"):
        (inner.parent/"settings.ini").write_text(text)
        monkeypatch.chdir(inner)
        assert project_root() == project and runs_root() == project/"runs"
    (inner.parent/"settings.ini").write_bytes(b"\xff[DEFAULT]\r\nlib_name=trustdd\r\n") # whatever wrote it
    assert project_root() == inner.parent


def test_no_notebooks_of_another_project_are_used(refused, project, monkeypatch):
    "A folder nbs/paper beside another project's settings was made figures of."
    other = project/"other"
    (other/"nbs"/"paper").mkdir(parents=True)
    (other/"nbs"/"paper"/"fig01_theirs.ipynb").write_text("{}")
    (other/"settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    monkeypatch.chdir(other)
    assert "no notebooks" in refused("paper", "--preset", "smoke")
