"Checkpoints of long runs travel with the repository: kept, laid back once, forgotten when the run is finished."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tools"))
import unfinished
from trustdd.core.checks import UserError

NAME = Path("paper")/"cifar10"/"dsa-none"/"ipc1"/"seed0"


def run(store, **files):
    "A run's folder with these files."
    folder = store/NAME
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items(): (folder/name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def kept(tmp_path, monkeypatch):
    "The folder of the repository in which checkpoints are kept."
    monkeypatch.setattr(unfinished, "KEPT", tmp_path/"kept")
    return tmp_path/"kept"


def test_a_checkpoint_goes_there_and_back(tmp_path, kept):
    run(tmp_path/"a", config__json="{}", checkpoint__safetensors="276", dynamics__jsonl="0, 200")
    unfinished.keep(tmp_path/"a")
    unfinished.lay_back(tmp_path/"b")
    assert (tmp_path/"b"/NAME/"checkpoint.safetensors").read_text() == "276"
    assert (tmp_path/"b"/NAME/"config.json").read_text() == "{}"
    assert (tmp_path/"b"/NAME/"dynamics.jsonl").read_text() == "0, 200"


def test_what_is_there_is_left_alone(tmp_path, kept):
    run(kept, config__json="{}", checkpoint__safetensors="old")
    run(tmp_path/"b", config__json="{}", checkpoint__safetensors="new")
    unfinished.lay_back(tmp_path/"b")
    assert (tmp_path/"b"/NAME/"checkpoint.safetensors").read_text() == "new"


def test_a_finished_run_is_forgotten(tmp_path, kept):
    run(kept, config__json="{}", checkpoint__safetensors="old")
    mine = run(tmp_path/"b", distilled__safetensors="all of it")
    unfinished.keep(tmp_path/"b")
    assert not (kept/NAME).exists() and (mine/"distilled.safetensors").read_text() == "all of it"


def test_wrong_words_are_refused(kept):
    for words in ([], ["keep"], ["forget", "runs"]):
        with pytest.raises(UserError): unfinished.main(words)
