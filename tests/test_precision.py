"bfloat16 where it is asked for: refused without the processor for it, recorded with it."
import json

import pandas as pd
import pytest

from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment, run_name
from trustdd.networks import compute
from trustdd.reproduction.items import PaperItem, publish_table, verdict
from trustdd.reproduction.runs import load_or_distill, load_or_run
from trustdd.reproduction.sides import side_folder

EXP = Experiment(preset="smoke", ipc=1, precision="bfloat16", n_nets=1, epochs=2, ood=("gaussian",))


@pytest.mark.parametrize("make", [load_or_run, load_or_distill])
def test_it_is_refused_before_anything_is_written(tmp_path, monkeypatch, make):
    monkeypatch.setattr(compute, "processor_flags", lambda: {"avx512f", "avx2"})
    with pytest.raises(UserError, match="choose float32") as e: make(EXP, tmp_path, "cpu", progress=False)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_it_is_part_of_name_set_side_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "processor_flags", lambda: {"amx_bf16"})
    run = load_or_run(EXP, tmp_path, "cpu", progress=False)
    assert run.distilled.provenance["experiment"]["precision"] == "bfloat16"
    exact = Experiment(**{**json.loads((run.folder/"config.json").read_text()), "precision": "float32"})
    assert run_name(exact) != run_name(EXP)
    assert side_folder(exact, "images", tmp_path) != side_folder(EXP, "images", tmp_path)
    item = PaperItem("tab01", "smoke", ipc="1", out=tmp_path/"out", runs=tmp_path)
    frame = pd.DataFrame(dict(mean=[1.0]))
    publish_table(item, frame, "A table", verdict(item, "A claim.", None, "numbers"), [run])
    assert ", bfloat16" in (tmp_path/"out"/"tab01.md").read_text().splitlines()[0]
    assert json.loads((tmp_path/"out"/"tab01.json").read_text())["precision"] == ["bfloat16"]
