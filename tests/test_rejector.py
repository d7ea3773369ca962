"A rejector answers as its parts do; its file is whole or refused; its commands say in a line what is wrong."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save as tensor_bytes
from torch import nn

from conftest import content, one_thread
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.core.randomness import stream
from trustdd.core.storage import digest, read_safetensors
from trustdd.data.catalog import load_dataset, load_ood, prepared
from trustdd.data.dataset import from_tensors
from trustdd.data.distilled_set import DistilledSet
from trustdd.data.pixels import as_pixels
from trustdd.distillation.distillation import distill
from trustdd.evaluation.rejector import Rejector
from trustdd.evaluation.scores import SCORES, msp
from trustdd.evaluation.thresholds import Acceptance, check_accept, score_threshold
from trustdd.networks.architectures import build_network
from trustdd.networks.training import train
from trustdd.reproduction import cli
from trustdd.reproduction.predict import Predict, Reject

SMALL = dict(dataset="digits", method="random", outliers="poe", preset="smoke", ipc=2, epochs=8,
             n_nets=2, lr_eval=0.05)


@pytest.fixture(scope="module")
def material():
    "A set that a fifth of the digits had no part in, networks trained on it, and these digits."
    with one_thread():
        syn = distill(Experiment(holdout=0.2, **SMALL), device="cpu", progress=False)
        yield syn, train(syn, device="cpu", progress=False), prepared(syn.experiment)


@pytest.fixture(scope="module")
def rejector(material):
    "Two networks and the threshold of 200 digits."
    syn, nets, held_out = material
    return Rejector.fit(nets, held_out, trained_on=syn, device="cpu").tested(load_dataset("digits"))


@pytest.fixture
def commands(monkeypatch):
    "The commands, whether the command line lists them yet or not."
    for name, command in (("reject", Reject), ("predict", Predict)):
        monkeypatch.setitem(cli._COMMANDS, name, command)


@pytest.fixture
def shell(project, commands, capfd):
    "Runs a command: (status, lines of output, lines of errors)."
    def run(*words):
        capfd.readouterr()
        status, (out, err) = cli.main([str(w) for w in words]), capfd.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("trustdd")]
        return status, out.splitlines(), errors
    return run


@pytest.fixture
def files(project, material, rejector):
    "A distilled set, a model, and a folder of six digits and four textures, in the project."
    material[0].save(project/"set.safetensors")
    rejector.save(project/"model.safetensors")
    digits, textures = load_dataset("digits").test_images[:6], load_ood("skimage-textures", (3, 40, 40))[::200][:4]
    (project/"scans"/"more").mkdir(parents=True)
    for i, x in enumerate(digits): Image.fromarray(x[0].numpy()).save(project/"scans"/f"d{2 * i + 1}.png")
    for i, x in enumerate(textures):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(project/"scans"/"more"/f"T{i}.png")
    return project


# --- the threshold

@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 100, 237])
def test_the_threshold_is_the_highest_that_accepts_enough(n):
    for kind in range(3):
        g = stream(n, "scores", kind)
        s = [torch.rand(n, generator=g), torch.randint(4, (n,), generator=g), torch.ones(n)][kind].double()
        for percent in range(1, 100):
            t = score_threshold(s, percent / 100)
            assert 100 * int((s >= t).sum()) >= percent * n
            higher = s[s > t]  # the next higher threshold would accept too few
            assert t in s and 100 * len(higher) < percent * n


def test_what_a_threshold_cannot_do_is_said():
    for accept in (0, 1, 1.0, -0.1, 1.5, float("nan"), True, "0.9", None):
        with pytest.raises(UserError, match="accept .* between 0 and 1"): check_accept(accept, 100)
    for n, accept in ((1, 0.5), (19, 0.95), (99, 0.99)):
        with pytest.warns(UserWarning, match=f"held_out has {n} image.*{accept}"): check_accept(accept, n)


def test_a_single_image_makes_a_threshold_that_accepts_it(material):
    syn, nets, held_out = material
    with pytest.warns(UserWarning, match="has 1 image,"):
        r = Rejector.fit(nets, held_out.test_images[:1], trained_on=syn, device="cpu")
    assert r.acceptance(held_out.test_images[:1]) == (1, 1)


def test_the_interval_is_wilsons():
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for n in (1, 2, 7, 100, 10_000):
        for k in {0, 1, n // 2, n - 1, n}:
            theirs = binomtest(k, n).proportion_ci(0.95, "wilson")
            assert np.allclose(Acceptance(k, n).interval, (theirs.low, theirs.high), atol=1e-14)


# --- answers

def test_images_of_every_form_get_the_same_answers(material, rejector, tmp_path):
    x = load_dataset("digits").test_images[:7]
    want = rejector.predict(x)
    pictures = [Image.fromarray(a[0].numpy()) for a in x]
    paths = [tmp_path/f"{i}.png" for i in range(7)]
    for picture, path in zip(pictures, paths): picture.save(path)
    colour, text = [p.convert("RGB") for p in pictures], [str(p) for p in paths]
    forms = [x.numpy(), x.double() / 255, (x.float() / 255).numpy(), x.repeat(1, 3, 1, 1), pictures, paths, text,
             colour, [pictures[0], paths[1], *colour[2:]], (x, torch.zeros(7)), (x.numpy(), [0] * 7)]
    for form in forms: pd.testing.assert_frame_equal(rejector.predict(form), want)
    assert rejector.predict(paths[0]).equals(rejector.predict(x[:1]))


@pytest.mark.parametrize("images", [
    [], torch.zeros(0, 1, 8, 8), torch.zeros(8, 8), torch.zeros(2, 2, 8, 8), torch.full((1, 1, 8, 8), 1.01),
    torch.full((1, 1, 8, 8), float("inf")), torch.zeros(1, 1, 8, 8).long(), [np.zeros((8, 8))], [1, 2],
    [torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)], "nowhere.png", Path("/"), torch.zeros(1, 1, 0, 8)])
def test_what_is_no_image_is_refused(rejector, images):
    with pytest.raises(UserError) as e: rejector.predict(images)
    assert "\n" not in str(e.value)


def test_pictures_are_cropped_and_resized_like_a_data_set(tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path/"a.png")
    middle = Image.fromarray(wide[:, 10:40]).resize((8, 8), Image.BILINEAR)
    want = torch.from_numpy(np.array(middle)).permute(2, 0, 1)[None]
    assert torch.equal(as_pixels(tmp_path/"a.png", (3, 8, 8)), want)
    assert torch.equal(as_pixels(torch.from_numpy(wide).permute(2, 0, 1)[None], (3, 8, 8)), want)


@pytest.mark.parametrize("score", SCORES)
def test_an_ensemble_of_one_is_its_network_and_of_equals_almost(material, score):
    syn, nets, held_out = material
    one, same = (Rejector.fit(n, held_out, 0.9, score, syn, "cpu") for n in (nets[0], [nets[0]] * 3))
    z = nets[0](syn_input(syn, held_out.test_images)).detach()
    assert torch.allclose(one.scores(held_out), SCORES[score](z), atol=1e-5)
    assert torch.allclose(one.scores(held_out), same.scores(held_out), atol=1e-12)
    assert one.acceptance(held_out).accepted == 180


def syn_input(syn, images):
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (syn.mean, syn.std))
    return (images.float() / 255 - mean) / std


def test_probabilities_are_the_mean_of_the_softmaxes(material, rejector):
    syn, nets, held_out = material
    x = syn_input(syn, held_out.test_images)
    p = sum(net(x).detach().double().softmax(1) for net in nets) / 2
    assert torch.allclose(rejector.scores(held_out), p.amax(1), atol=1e-6)
    assert rejector.predict(held_out)["likeliest"].tolist() == [str(int(c)) for c in p.argmax(1)]


def test_the_networks_of_the_user_are_left_alone(material):
    syn, nets, held_out = material
    net = build_network("convnet", syn.shape, 10, stream(0, "mine"), width=4, depth=1, norm="batch").train()
    r = Rejector.fit(net, held_out, trained_on=syn, device="cpu")
    before = r.scores(held_out)
    assert net.training and all(p.requires_grad for p in net.parameters())
    with torch.no_grad(): net.head.weight.zero_()
    assert torch.equal(r.scores(held_out), before)


def test_what_does_not_fit_is_refused(material):
    syn, nets, held_out = material
    images = held_out.images[:40]
    def named(*classes): return from_tensors("t", images, torch.arange(40) % 2, images, torch.arange(40) % 2, classes)
    for held, like, said in ((held_out, named("a", "b"), "classes"), (images, named("a", "b"), "2 classes"),
                             (images, None, "trained_on"), (named("a", "unknown"), None, "unknown"),
                             (load_dataset("digits@16"), syn, "shape")):
        with pytest.raises(UserError, match=said): Rejector.fit(nets, held, trained_on=like, device="cpu")
    for networks in ([], None, "nets", [None]):
        with pytest.raises(UserError, match="networks"): Rejector.fit(networks, held_out, trained_on=syn)


# --- its file

def test_a_file_gives_the_same_rejector(rejector, tmp_path):
    digits, path = load_dataset("digits"), tmp_path/"r.safetensors"
    rejector.save(path)
    again = Rejector.load(path)
    assert torch.equal(again.logits(digits), rejector.logits(digits)) and repr(again) == repr(rejector)
    for name in ("classes", "shape", "mean", "std", "score", "accept", "threshold", "n_held_out", "test", "source"):
        assert getattr(again, name) == getattr(rejector, name)
    again.save(tmp_path/"s.safetensors")
    assert path.read_bytes() == (tmp_path/"s.safetensors").read_bytes()
    code = ("import sys; from trustdd.evaluation.rejector import Rejector; from trustdd.data.catalog import load_dataset;"
            "print(Rejector.load(sys.argv[1]).scores(load_dataset('digits').test_images[:5]).tolist())")
    elsewhere = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True,
                               env={"PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)})
    assert json.loads(elsewhere.stdout) == rejector.scores(digits.test_images[:5]).tolist()


def test_networks_of_several_kinds_share_a_file(material, tmp_path):
    syn, _, held_out = material
    kinds = [dict(model="mlp"), dict(model="lenet"), dict(model="convnet", width=6, depth=2, norm="batch", act="sigmoid")]
    nets = [build_network(**k, shape=syn.shape, n_classes=10, generator=stream(i, "kind")) for i, k in enumerate(kinds)]
    r = Rejector.fit(nets, held_out, score="gen", trained_on=syn, device="cpu")
    r.save(tmp_path/"r.safetensors")
    assert torch.equal(Rejector.load(tmp_path/"r.safetensors").scores(held_out), r.scores(held_out))


def test_a_flipped_bit_is_noticed_wherever_it_is(rejector, tmp_path):
    path = tmp_path/"r.safetensors"
    rejector.save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    places = {*range(0, start, 13), *range(start, len(whole), len(whole) // 60)}
    for at in places:
        for bit in (1, 32):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1:])
            try: Rejector.load(path)
            except UserError as e: assert "\n" not in str(e) and "r.safetensors" in str(e)
            else: assert whole[at:at + 1] in b" ", (at, whole[at - 9:at + 9])  # padding of the header
    for length in (0, 4, 100, start, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError): Rejector.load(path)


@pytest.mark.parametrize("changes", [
    dict(threshold=float("nan")), dict(threshold="0.5"), dict(std=[0.0]), dict(mean=[0.1, 0.2]), dict(shape=[1, 8]),
    *(dict(std=[v]) for v in (float("inf"), float("nan"), 1e308, 1e-308, -0.5, 95.6, True, None)), *(dict(mean=[v]) for v in (float("nan"), float("-inf"), -0.1, 77.7)),
    dict(shape=[1, 8, 9]), dict(shape=[1, -8, -8]), dict(classes=["a"]), dict(classes=["a"] * 9), dict(classes=7),
    dict(networks=[]), dict(networks=[None, None]), dict(networks=["convnet"] * 2), dict(score="odin"), dict(score=None),
    dict(accept=2.0), dict(test=[9, 3]), dict(test=[1]), dict(test=[0, 0]), dict(format="trustdd-rejector-2"),
    dict(source=None), dict(n_held_out="many"),
    *(dict(networks=[c, c]) for c in (dict(model="vit", depth=1), dict(model="convnet", width=0, depth=2), {},
                                      dict(model="convnet", width=10**7, depth=2), dict(model="mlp", depth=10**9),
                                      dict(model="convnet", width=-1, depth=2), dict(model="convnet", depth=2, eval=1)))],
    ids=str)
def test_a_forged_description_is_refused_in_a_line(rejector, tmp_path, changes):
    path = tmp_path/"r.safetensors"
    rejector.save(path)
    tensors, meta = read_safetensors(path)
    said = json.loads(meta["rejector"]) | changes
    del said["digest"]
    text = json.dumps(said | dict(digest=digest(said)))
    path.write_bytes(tensor_bytes(tensors, {"rejector": text}))
    with pytest.raises(UserError) as e: Rejector.load(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500 and "r.safetensors" in str(e.value)


def test_files_of_other_kinds_are_not_taken_for_one(material, rejector, tmp_path):
    material[0].save(tmp_path/"set.safetensors")
    rejector.save(tmp_path/"model.safetensors")
    torch.save({}, tmp_path/"pickle.safetensors")
    for name in ("set", "pickle", "nowhere"):
        with pytest.raises(UserError, match=name): Rejector.load(tmp_path/f"{name}.safetensors")
    with pytest.raises(UserError, match="not a distilled set"): DistilledSet.load(tmp_path/"model.safetensors")


def test_a_network_of_ones_own_is_given_when_the_file_is_read(material, tmp_path):
    _, _, held_out = material
    def make(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    r = Rejector.fit([make(), make()], held_out, device="cpu")
    r.save(tmp_path/"r.safetensors")
    with pytest.raises(UserError, match="network="): Rejector.load(tmp_path/"r.safetensors")
    with pytest.raises(UserError, match="do not fit"): Rejector.load(tmp_path/"r.safetensors", nn.Linear(2, 2))
    assert torch.equal(Rejector.load(tmp_path/"r.safetensors", make()).scores(held_out), r.scores(held_out))


# --- the commands

def test_from_a_set_to_answers(files, shell, material, rejector):
    status, said, errors = shell("reject", "set.safetensors", "--out", "new/m.safetensors", "--device", "cpu")
    assert (status, errors) == (0, []) and "took part" not in " ".join(said)
    assert {p.name for p in Path("new").iterdir()} == {"m.safetensors"}
    assert Path("new/m.safetensors").read_bytes() == Path("model.safetensors").read_bytes()
    status, said, errors = shell("predict", "new/m.safetensors", "scans", "--out", "answers.csv", "--device", "cpu")
    assert (status, errors) == (0, []) and said[0].startswith("10 images: ") and str(rejector.test) in said[1]
    table = pd.read_csv("answers.csv", dtype=str)
    order = [*(f"scans/d{i}.png" for i in (1, 3, 5, 7, 9, 11)), *(f"scans/more/T{i}.png" for i in range(4))]
    assert table["file"].tolist() == order
    want = rejector.predict(order, "cpu")
    assert table["class"].tolist() == want["class"].tolist()
    assert table["score"].astype(float).tolist() == want["score"].tolist()
    assert table["accepted"].tolist() == [str(a) for a in want["accepted"]]
    counted = want["class"].value_counts()
    assert f"{10 - counted.get('unknown', 0)} accepted" in said[0] and f"{counted.get('unknown', 0)} unknown" in said[0]
    for name in set(want["class"]) - {"unknown"}: assert f"{name}: {counted[name]}" in said[0]


def test_files_that_cannot_be_read_are_named_and_the_others_answered(files, shell):
    (files/"scans"/"bad1.png").write_bytes(b"no picture")
    (files/"scans"/"bad2.jpg").write_bytes((files/"scans"/"d1.png").read_bytes()[:60])
    (files/"scans"/"empty.gif").write_bytes(b"")
    status, said, errors = shell("predict", "model.safetensors", "scans", "--out", "answers.csv")
    assert status == 1 and said[0].startswith("10 images") and len(errors) == 1
    assert errors[0].startswith("trustdd: 3 of 13 files cannot be read: scans/bad1.png, scans/bad2.jpg, scans/empty.gif")
    table = pd.read_csv("answers.csv", dtype=str)
    assert len(table) == 13 and table["problem"].notna().sum() == 3
    assert table["class"].isna().tolist() == table["problem"].notna().tolist()
    before = content(files)
    status, said, errors = shell("predict", "model.safetensors", "scans/bad1.png", "scans/empty.gif", "--out", "more.csv")
    assert status == 2 and not said and len(errors) == 1 and content(files) == before


@pytest.mark.parametrize("name", ["a\rb.png", "a\nb.png", os.fsdecode(b"\xff.png")])
def test_a_name_that_is_no_text_is_refused_before_any_work(files, commands, refused, name):
    "It would break the rows of a table, or not be written at all."
    shutil.copy("scans/d1.png", name)
    for words in ([], ["--out", "answers.csv"]): assert "name is not a text" in refused("predict", "model.safetensors", name, *words)


def test_a_folder_of_the_users_beside_the_model_stays(files, shell):
    mine = files/"m.safetensors.training"
    mine.mkdir()
    (mine/"thesis.txt").write_text("mine")
    assert shell("reject", "set.safetensors", "--out", "m.safetensors", "--device", "cpu")[0] == 0
    assert content(mine) == {"thesis.txt": b"mine"} and not (files/".trustdd").exists()


def test_answers_without_a_table_are_printed(files, shell):
    status, said, errors = shell("predict", "model.safetensors", "scans/d11.png", "scans/d3.png", "./scans/d3.png")
    assert status == 0 and [line.split()[0] for line in said[:2]] == ["scans/d3.png", "scans/d11.png"]
    assert any(line.startswith("2 images") for line in said)


@pytest.mark.parametrize("words, said", [
    ("predict", "predict needs file"), ("predict model.safetensors", "files"), ("predict nowhere.safetensors scans", "nowhere"),
    ("predict set.safetensors scans", "not a rejector"), ("predict model.safetensors nowhere", "nowhere"),
    ("predict model.safetensors empty", "no image in empty"), ("predict model.safetensors scans --out scans", "scans is a folder"),
    ("predict model.safetensors scans --out model.safetensors", "choose another"),
    ("predict model.safetensors scans --out scans/d1.png", "choose another"),
    ("predict model.safetensors scans --device tpu", "tpu"), ("predict model.safetensors scans --colour red", "--colour"),
    ("reject set.safetensors", "the model to write"), ("reject model.safetensors --out x", "not a distilled set"),
    ("reject set.safetensors --out set.safetensors", "choose another"), ("reject set.safetensors --out scans", "folder"),
    ("reject set.safetensors --out x --accept 1", "accept = 1.0"), ("reject set.safetensors --out x --accept much", "number"),
    ("reject set.safetensors --out x --score odin", "odin"), ("reject set.safetensors --out x --n-nets 0", "n_nets = 0"), ("reject set.safetensors --out x --seed -1", "seed = -1"),
    ("reject set.safetensors --out x --holdout 0.5", "0.2"), ("reject set.safetensors --out x --dataset nosuch", "nosuch"),
    ("reject set.safetensors --out x --epochs 0", "epochs")])
def test_a_wrong_request_is_one_line_and_leaves_nothing(files, commands, refused, words, said):
    (files/"empty").mkdir()
    assert said in refused(*words.split())


def test_images_that_took_part_are_said_to_have(files, shell):
    syn = DistilledSet.load("set.safetensors")
    plain = distill(replace(syn.experiment, holdout=0.), device="cpu", progress=False)
    plain.save("plain.safetensors")
    words = "--n-nets 1 --holdout 0.1 --accept 0.995 --score energy --device cpu --epochs 2".split()
    status, said, _ = shell("reject", "plain.safetensors", "--out", "m.safetensors", *words)
    notes = [line for line in said if line.startswith("note: ")]
    assert status == 0 and len(notes) == 2 and "100 images" in notes[0] and "took part" in notes[1]
    made = Rejector.load("m.safetensors")
    assert (len(made.networks), made.n_held_out, made.score, made.accept) == (1, 100, "energy", 0.995)
    assert "took part" in made.source and made.test.n == 797


def test_whitened_sets_are_rejected_whitened(files, shell):
    syn = distill(Experiment(**SMALL | dict(holdout=0.2, zca=True, n_nets=1)), device="cpu", progress=False)
    syn.save("white.safetensors")
    assert shell("reject", "white.safetensors", "--out", "m.safetensors", "--device", "cpu")[0] == 0
    made, digits = Rejector.load("m.safetensors"), load_dataset("digits")
    net, = train(syn, device="cpu", progress=False)
    white = prepared(syn.experiment).normalise(digits.test_images)
    assert torch.allclose(made.scores(digits), msp(net(white).detach()), atol=1e-6)


def test_the_whitening_map_is_of_the_images_that_the_set_was_made_of(tmp_path):
    def folder(root, turned):
        for i in range(40):
            path = root/"mine"/("dark", "light")[i % 2]/f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(np.arange(64) * (1 + i % 2) + i, turned).astype(np.uint8).reshape(8, 8)).save(path)
        return root
    root, other = folder(tmp_path/"a", 0), folder(tmp_path/"b", 5)
    exp = Experiment(dataset="mine", method="random", preset="smoke", zca=True, holdout=0.25, n_nets=1, epochs=1)
    syn = distill(exp, device="cpu", root=root, progress=False)
    nets, held_out = train(syn, device="cpu", progress=False), prepared(exp, root)
    made = Rejector.fit(nets, held_out, 0.5, trained_on=syn, device="cpu", root=root)
    assert torch.equal(made.zca.matrix, held_out.zca.matrix)
    with pytest.raises(UserError, match="mine has other images"):
        Rejector.fit(nets, held_out, 0.5, trained_on=syn, device="cpu", root=other)


def test_a_training_out_of_time_goes_on(files, shell):
    words = ["reject", "set.safetensors", "--out", "m.safetensors", "--device", "cpu", "--time-budget", "0.001"]
    calls = [shell(*words)]
    while calls[-1][0] == 75 and len(calls) < 99: calls.append(shell(*words))
    assert [status for status, *_ in calls] == [75] * (len(calls) - 1) + [0] and len(calls) > 2
    assert Path("m.safetensors").read_bytes() == Path("model.safetensors").read_bytes()
    assert not list(files.glob("*.training")) and not (files/".trustdd").exists()


def test_a_folder_with_other_files_and_sideways_photos(files, shell, rejector):
    (files/"scans"/"read.me").write_text("text")
    photo, exif = Image.open("scans/d1.png"), Image.Exif()
    exif[0x0112] = 8
    photo.save("scans/turned.png", exif=exif)
    status, said, errors = shell("predict", "model.safetensors", "scans", "--out", "answers.csv")
    assert (status, errors) == (0, []) and any("1 .me" in line for line in said) and said[0].startswith("11 images")
    table = pd.read_csv("answers.csv", dtype={"class": str}).set_index("file")
    turned = load_dataset("digits").test_images[:1].rot90(1, (2, 3))
    assert table.loc["scans/turned.png", "score"] == pytest.approx(rejector.predict(turned)["score"][0], abs=1e-6)
    picture = Image.open("scans/turned.png")
    assert rejector.predict(picture).equals(rejector.predict("scans/turned.png")) and picture.getexif()[0x0112] == 8
