"One flipped bit, anywhere in what a run keeps, gives an error or the right result: never another result."
import json, random, shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from conftest import content, odd_json, one_thread
from trustdd.core.checks import UserError
from trustdd.core.deadline import OutOfTime
from trustdd.core.experiment import Experiment, run_name
from trustdd.core.storage import read_lines, read_safetensors, write_safetensors
from trustdd.data import catalog
from trustdd.data.catalog import load_dataset, prepared
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.buffers import Buffer, buffer_name, stored_buffers
from trustdd.distillation.distillation import load_checkpoint
from trustdd.distillation.trajectories import expert_file, TrajectoryWriter
from trustdd.evaluation.image_scores import Scores
from trustdd.evaluation.logits import Logits
from trustdd.evaluation.report import Report
from trustdd.networks.training_checkpoints import _read as read_network
from trustdd.reproduction.cli import main
from trustdd.reproduction.run_store import is_finished
from trustdd.reproduction.runs import load_or_run
from trustdd.reproduction.sides import SIDES, stored_side

TINY = dict(dataset="digits", outliers="poe", preset="smoke", ipc=1, iterations=3, n_nets=1, epochs=3, n_test=20)
DSA = Experiment(**TINY, ood=("gaussian",)) # its images and outliers are distilled one side after the other
WHOLE = Experiment(**TINY, outer=2, inner=1, holdout=0.2)
WATCHED, DISTILLING, TRAINING = replace(WHOLE, watch=(1, 3)), replace(WHOLE, seed=1), replace(WHOLE, seed=2)
MTT = Experiment(**TINY, ood=("gaussian",), method="mtt", experts=1, train_epochs=2, expert_epochs=1, max_start_epoch=1)
ROWS, SIZE = 4, 5 # of the expert that is not finished
pytestmark = pytest.mark.usefixtures("one_commit")


def run(exp, runs): return load_or_run(exp, runs, "cpu", progress=False, every=0)


def stopped(exp, runs, after, monkeypatch):
    "Begin a run that is out of time at the step after so many."
    steps = iter([True] * after)
    with monkeypatch.context() as patch, pytest.raises(OutOfTime):
        patch.setattr("trustdd.core.deadline.StepTimer.next", lambda self: next(steps, False))
        run(exp, runs)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Finished runs, one stopped while distilling, one stopped while training, and an expert under way."
    runs = tmp_path_factory.mktemp("corruption")/"runs"
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("trustdd.distillation.distillation.commit", lambda: "a commit")
        for exp in (DSA, WATCHED, MTT): run(exp, runs)
        stopped(DISTILLING, runs, 3, patch)
        stopped(TRAINING, runs, 7, patch)
    writer = TrajectoryWriter(runs/buffer_name(MTT), 1, ROWS, SIZE, dict(expert=1))
    for epoch in range(3): writer.append(torch.full((SIZE,), float(epoch)), 0.5 + epoch, 1.)
    return runs


def expert_under_way(folder):
    "The rows that are gone on from: all, or fewer of the same; training gives the others again."
    writer = TrajectoryWriter(folder, 1, ROWS, SIZE, dict(expert=1))
    whole = np.frombuffer(writer.path.read_bytes()[len(writer.head):], dtype="<f4")
    rows = [whole[i * SIZE:(i + 1) * SIZE] for i in range(writer.done)]
    assert all((row == i).all() and len(row) == SIZE for i, row in enumerate(rows))
    return "whole rows"


def parts(thing):
    "All that an object holds, as plain values that can be compared."
    if isinstance(thing, torch.Tensor): return str(thing.dtype), tuple(thing.shape), thing.tolist()
    if isinstance(thing, np.ndarray): return parts(torch.from_numpy(thing))
    if isinstance(thing, dict): return {k: parts(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)): return [parts(v) for v in thing]
    return {k: parts(v) for k, v in vars(thing).items()} if hasattr(thing, "__dict__") else thing


def buffer(runs):
    found = Buffer(runs/buffer_name(MTT), MTT)
    return [found.snapshot(0, epoch) for epoch in range(3)], found.log(0)


def readers(runs):
    "File of the store → what reads it, without arguments."
    found = {}
    for exp in (DSA, WATCHED, MTT, DISTILLING, TRAINING):
        folder = runs/run_name(exp)
        for path in folder.rglob("*"):
            kinds = {"report.json": Report.load, "logits.safetensors": Logits.load, "scores.safetensors": Scores.load, "log.jsonl": read_lines,
                     "distilled.safetensors": DistilledSet.load, "dynamics.jsonl": read_lines, "network000.safetensors": read_network,
                     "checkpoint.safetensors": lambda p, exp=exp: load_checkpoint(p, exp, "cpu"),
                     "config.json": lambda p, exp=exp: is_finished(exp, p.parent)}
            if path.name in kinds: found[path] = lambda p=path, read=kinds[path.name]: read(p)
    for path, side in zip(sorted(runs.rglob("side.safetensors")), SIDES): found[path] = lambda side=side: stored_side(DSA, side, runs)
    experts = runs/buffer_name(MTT)
    for suffix in ("safetensors", "jsonl"): found[expert_file(experts, 0, suffix)] = lambda: buffer(runs)
    for suffix in ("part", "jsonl"): found[expert_file(experts, 1, suffix)] = lambda: expert_under_way(experts)
    found[experts/"buffer.json"] = lambda: [row for row in stored_buffers(runs) if row["dataset"]]
    return found


def flip(path, draw):
    "Turn one bit of a file; returns what was there before, and which bit it was."
    whole = path.read_bytes()
    bit = draw.randrange(8 * len(whole))
    turned = bytearray(whole)
    turned[bit // 8] ^= 1 << bit % 8
    path.write_bytes(turned)
    return whole, bit


def outcome(read, right):
    try: got = parts(read())
    except UserError as e:
        assert "\n" not in str(e)
        return "refused"
    return "right" if got == right or got == [] else f"WRONG: {got}"


def test_a_flip_in_the_name_of_a_checksum(store):
    "Under another name it was none, and what was left was read as of version 0.1."
    found = {path: read for path, read in readers(store).items() if b'"checksum"' in path.read_bytes() and path.stem != "expert001"}
    assert {path.suffix for path in found} == {".json", ".jsonl", ".safetensors"}
    for path, read in found.items():
        right, kept = parts(read()), {p: p.read_bytes() for p in path.parent.glob(f"{path.stem}.*")}
        for i in range(8):
            whole = bytearray(path.read_bytes())
            whole[whole.rindex(b'"checksum"') + 1 + i] ^= 8
            path.write_bytes(whole)
            got = outcome(read, right)
            for p, bytes_ in kept.items(): p.write_bytes(bytes_)
            assert got == ("right" if path.stem == "buffer" else "refused"), (path, i, got)


@pytest.mark.parametrize("seed", [0, 141, 2026])
def test_random_flips_of_all_that_is_stored(store, seed):
    "More than 200 flips, of each kind of file some; each is refused in one line that names the file, or changes nothing."
    found, draw, seen, before = readers(store), random.Random(seed), [], content(store)
    assert len(found) >= 25 and {p.name for p in found} >= {"network000.safetensors", "checkpoint.safetensors", "side.safetensors", "expert001.part", "dynamics.jsonl"}
    files = list(found)*7 + draw.choices(list(found), k=100)
    for path in files:
        right = parts(found[path]())
        kept = {p: p.read_bytes() for p in path.parent.glob(f"{path.stem}.*")} # an expert's file and its log
        _, bit = flip(path, draw)
        got = outcome(found[path], right)
        for p, whole in kept.items(): p.write_bytes(whole)
        seen.append(got)
        assert got in ("refused", "right"), (path, bit, got)
    assert len(seen) >= 200 and seen.count("refused") > 0.7 * len(seen), seen.count("refused")
    assert {k: v for k, v in content(store).items() if ".lock" not in k} == {k: v for k, v in before.items() if ".lock" not in k}


def odd_versions(path):
    "What is odd → the file with that in its JSON, and checksums that fit."
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        meta.pop("checksum", None)
        (key, text), = ((k, v) for k, v in meta.items() if v.startswith("{"))
        for what, odd in odd_json(text).items():
            write_safetensors(path, tensors, meta | {key: odd})
            yield what
    elif path.suffix in (".json", ".jsonl"):
        first, *others = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        bare = {k: v for k, v in json.loads(first).items() if k != "checksum"}
        for what, odd in odd_json(json.dumps(bare)).items():
            path.write_text("".join(line + "\n" for line in (odd, *others)))
            yield what


def test_odd_json_in_all_that_is_stored(store):
    "Deep nesting ended in a RecursionError; NaN was a number, and of a key that is there twice the last value counted."
    seen = set()
    for path, read in readers(store).items():
        right, kept = parts(read()), {p: p.read_bytes() for p in path.parent.glob(f"{path.stem}.*")}
        for what in odd_versions(path):
            got = outcome(read, right)
            for p, whole in kept.items(): p.write_bytes(whole)
            under_way = path.stem in ("expert001", "buffer") # their rows are made again, or not listed
            assert got == ("right" if under_way else "refused"), (path, what, got)
            seen.add((path.name, what))
    assert len({name for name, _ in seen}) >= 12 and len({what for _, what in seen}) == 9


@pytest.mark.parametrize("exp, name", [(DISTILLING, "checkpoint.safetensors"), (TRAINING, "network000.safetensors"), (TRAINING, "distilled.safetensors"), (TRAINING, "log.jsonl")])
def test_an_unfinished_run_never_goes_on_from_a_wrong_state(store, tmp_path, exp, name):
    "A sign bit in the middle of the data: the run stops with one line that names the file, and goes on once the file is gone."
    shutil.copytree(store, tmp_path/"runs")
    folder, straight = tmp_path/"runs"/run_name(exp), run(exp, tmp_path/"straight").folder
    path, = folder.rglob(name)
    whole = bytearray(path.read_bytes())
    whole[-1 if name != "log.jsonl" else whole.index(b'"loss": ') + 8] ^= 1 if name == "log.jsonl" else 0x80
    path.write_bytes(whole)
    with pytest.raises(UserError, match=f"{name} is damaged.*; delete it"): run(exp, tmp_path/"runs")
    path.unlink()
    run(exp, tmp_path/"runs")
    for kept in ("distilled.safetensors", "ood.csv"): assert (folder/kept).read_bytes() == (straight/kept).read_bytes(), kept


def test_commands_refuse_what_is_damaged(store, tmp_path, capfd):
    "evaluate, run and buffers: exit status 2 and one line that says which file and what to do."
    shutil.copytree(store, tmp_path/"runs")
    folder, experts = tmp_path/"runs"/run_name(DSA), tmp_path/"runs"/buffer_name(MTT)
    words = "--dataset digits --outliers poe --preset smoke --ipc 1 --iterations 3 --n-nets 1 --epochs 3 --n-test 20 --ood gaussian".split()
    for path, command in {
        folder/"distilled.safetensors": ["evaluate", folder/"distilled.safetensors"],
        folder/"report.json": ["run", *words, "--device", "cpu", "--runs", tmp_path/"runs"],
        expert_file(experts, 0, "jsonl"): ["buffers", *words[:8], "--experts", "1", "--train-epochs", "2", "--device", "cpu", "--runs", tmp_path/"runs"],
    }.items():
        whole = path.read_bytes()
        at = whole.index(b'0.') + 2 if path.suffix != ".safetensors" else len(whole) - 2
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        capfd.readouterr()
        assert main([str(w) for w in command]) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and path.stem in said and ("again" in said), said
        path.write_bytes(whole)


def test_decoded_images_and_whitening_maps_are_made_again(project):
    "Any flipped bit of what is cached: the images, labels and maps are those of the files."
    draw, numbers = random.Random(1), np.random.default_rng(0)
    for c in "ab":
        for k in range(4):
            file = project/"data"/"mine"/c/f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
    exp = Experiment(dataset="mine", preset="smoke", ipc=1, zca=True)
    def seen():
        for thing in vars(catalog).values():
            if hasattr(thing, "cache_clear"): thing.cache_clear() # what is kept in memory
        data, white = load_dataset("mine"), prepared(exp)
        return parts([data.images, data.labels, data.test_images, data.test_labels, white.zca.matrix, white.zca.mean])
    right = seen()
    caches = [p for p in sorted((project/"data"/".cache").rglob("*.safetensors"))]
    assert len(caches) >= 2
    for path in caches * 15:
        whole, _ = flip(path, draw)
        assert seen() == right
        read_safetensors(path) # it is whole again


def test_files_of_version_0_1_are_read(store, tmp_path):
    "Without a checksum a file is read as it is."
    from safetensors.torch import save
    folder = store/run_name(DSA)
    for name in ("distilled.safetensors", "logits.safetensors", "scores.safetensors"):
        with safe_open(folder/name, "pt") as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
        assert meta.pop("checksum")
        (tmp_path/name).write_bytes(save(tensors, meta))
        assert parts(read_safetensors(tmp_path/name)) == parts(read_safetensors(folder/name))
        write_safetensors(tmp_path/name, tensors, meta)
        assert (tmp_path/name).read_bytes() == (folder/name).read_bytes()
    said = json.loads((folder/"report.json").read_text())
    assert said.pop("checksum")
    (tmp_path/"report.json").write_text(json.dumps(said))
    assert Report.load(tmp_path) == Report.load(folder)
