"Every layout in which people release distilled sets, written here and imported: the labels keep their meaning, doubt is asked about, and a set that we export comes back as it was."
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import content, one_thread
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment, to_dict
from trustdd.data.catalog import load_dataset
from trustdd.data.dataset import from_tensors
from trustdd.data.distilled_set import DistilledSet
from trustdd.distillation.distillation import distill
from trustdd.distillation.importers import import_set
from trustdd.networks.training import train
from trustdd.reproduction.cli import main

FLAGS = "--preset smoke --width 4 --n-nets 2 --epochs 3".split()
RECIPE = ["--recipe", "dsa", *FLAGS]
pytestmark = [pytest.mark.usefixtures("project"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def made():
    "Two real digits per class: bytes, normalised images and labels."
    digits = load_dataset("digits")
    chosen = torch.cat([digits.of_class(c)[:2] for c in range(10)])
    return digits.images[chosen], digits.normalise(digits.images[chosen]), digits.labels[chosen]


def imported(file, *words):
    "The set that the command makes of a file."
    assert main(["import", str(file), *words, "--out", "out.safetensors"]) == 0
    return DistilledSet.load("out.safetensors")


def judge(file, folder, *words):
    "The report of `trustdd evaluate`."
    assert main(["evaluate", str(file), "--ood", "gaussian,skimage-textures", "--device", "cpu", "--out", str(folder), *words]) == 0
    report = json.loads((folder/"report.json").read_text())
    return {what: report[what] for what in ("accuracy", "ood_values", "errors", "ece", "reliability", "n_test")}


# --- layouts

def one_hot(y, low=0., high=1.): return torch.full((len(y), 10), low).scatter_(1, y[:, None], high)


LAYOUTS = {
    "npz": lambda b, x, y: np.savez("set.npz", images=x.numpy(), labels=y.numpy()),
    "npz, compressed, X and y": lambda b, x, y: np.savez_compressed("set.npz", X_train=x.numpy(), y_train=y.numpy().astype("u2")),
    "npz, channels last, bytes": lambda b, x, y: np.savez("set.npz", images=b.permute(0, 2, 3, 1).numpy(), labels=y.numpy()),
    "npz, no channel, floats in [0, 1]": lambda b, x, y: np.savez("set.npz", images=(b[:, 0].float() / 255).numpy(), labels=y.numpy()),
    "npz, big-endian": lambda b, x, y: np.savez("set.npz", images=x.numpy().astype(">f4"), labels=y.numpy().astype(">i4")),
    "npz, step size": lambda b, x, y: np.savez("set.npz", images=x.numpy(), labels=y.numpy(), syn_lr=0.02),
    "tuple": lambda b, x, y: torch.save((x, y), "set.pt"),
    "list of lists": lambda b, x, y: torch.save([list(x), y.tolist()], "set.pt"),
    "list of pairs": lambda b, x, y: torch.save([(i, int(c)) for i, c in zip(x, y)], "set.pt"),
    "dictionary": lambda b, x, y: torch.save({"image_syn": x, "label_syn": y}, "set.pt"),
    "dictionary of numpy arrays": lambda b, x, y: torch.save({"images": x.numpy(), "labels": y.numpy()}, "set.pt"),
    "legacy torch.save": lambda b, x, y: torch.save((x, y), "set.pt", _use_new_zipfile_serialization=False),
    "parameters": lambda b, x, y: torch.save({"images": torch.nn.Parameter(x), "labels": y}, "set.pt"),
    "float64": lambda b, x, y: torch.save((x.double(), y.double()), "set.pt"),
    "bytes as long": lambda b, x, y: torch.save((b.long(), y), "set.pt"),
    "labels uint8": lambda b, x, y: torch.save((x, y.byte()), "set.pt"),
    "labels float16": lambda b, x, y: torch.save((x, y.half()), "set.pt"),
    "labels in a column": lambda b, x, y: torch.save((x, y[:, None].int()), "set.pt"),
    "labels one-hot": lambda b, x, y: torch.save((x, one_hot(y)), "set.pt"),
    "labels one-hot, whole": lambda b, x, y: torch.save((x, one_hot(y).long()), "set.pt"),
    "labels one-hot, true and false": lambda b, x, y: np.savez("set.npz", images=x.numpy(), labels=one_hot(y).numpy() == 1),
    "labels centred": lambda b, x, y: torch.save((x, one_hot(y, -0.1, 0.9)), "set.pt"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_same_set(made, project, name, capfd):
    LAYOUTS[name](*made)
    syn = imported(next(project.glob("set.*")), "--dataset", "digits", *RECIPE)
    assert torch.equal(syn.images, made[1]) and torch.equal(syn.labels, made[2]) and syn.soft is None
    assert syn.lr == (0.02 if "step" in name else None)
    said = capfd.readouterr().out
    assert ("one-hot" in said) == ("hot" in name or "centred" in name)
    assert ("normalised by mean and std" in said) == ("bytes" in name or "[0, 1]" in name)
    assert "labels, in the order of numbers: 0 = 0" in said


def test_arrays_with_their_labels_beside(made, project):
    np.save("X_small.npy", made[1].numpy()); np.save("y_small.npy", made[2].numpy()); np.save("other.npy", made[2].numpy())
    for words in ([], ["--labels", "other.npy"]):
        assert torch.equal(imported("X_small.npy", "--dataset", "digits", *RECIPE, *words).labels, made[2])


def test_several_files_count_as_one_set_in_the_order_of_their_numbers(made, project):
    for n, part in ((2, slice(0, 8)), (10, slice(8, 20))): np.savez(f"part_{n}.npz", images=made[1][part], labels=made[2][part])
    for file in ("part_*.npz", "part_2.npz,part_10.npz"):
        syn = imported(file, "--dataset", "digits", *RECIPE)
        assert torch.equal(syn.images, made[1]) and torch.equal(syn.labels, made[2])
    assert len(syn.provenance["imported"]["files"]) == 2


def test_a_folder_of_mtt(made, project):
    (project/"logs").mkdir()
    for name, x in (("images_best", made[1]), ("images_0", -made[1]), ("labels_best", made[2]), ("labels_0", made[2]), ("lr_best", torch.tensor(0.03))):
        torch.save(x, f"logs/{name}.pt")
    syn = imported("logs", "--dataset", "digits", *FLAGS)
    assert torch.equal(syn.images, made[1]) and syn.lr == pytest.approx(0.03) and syn.experiment.method == "mtt"


def pictures(folder, images, classes):
    "CLASS/NAME.png."
    for i, (x, c) in enumerate(zip(images, classes)):
        (folder/c).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).save(folder/c/f"{i}.png")


def test_a_folder_of_pictures(made, project):
    pictures(project/"set", made[0], [str(int(c)) for c in made[2]])
    syn = imported("set", "--dataset", "digits", *RECIPE)
    assert torch.equal(syn.images, made[1]) and torch.equal(syn.labels, made[2])
    assert syn.card["made by"] == "unknown, imported" and "unknown" in repr(syn) # the recipe is no method


# --- soft labels

def test_soft_labels_are_kept_and_trained_with(made, project, capfd):
    soft = one_hot(made[2], 0.02, 0.82)
    torch.save((made[1], soft), "set.pt")
    syn = imported("set.pt", "--dataset", "digits", *RECIPE)
    assert torch.equal(syn.soft, soft) and torch.equal(syn.labels, made[2])
    assert "labels are soft" in capfd.readouterr().out and "soft" in syn.card["labels"]
    nets = [train(s, 1, 0, "cpu", progress=False)[0].state_dict() for s in (syn, replace(syn, soft=None), replace(syn, soft=one_hot(made[2])))]
    weights = [torch.cat([v.flatten() for v in net.values()]) for net in nets]
    assert not torch.allclose(weights[0], weights[1], atol=1e-4)    # the distribution matters
    assert torch.allclose(weights[2], weights[1], atol=1e-5)        # one-hot rows are the class
    assert judge("out.safetensors", project/"a")["accuracy"]


def test_rows_that_are_no_probabilities_are_asked_about(made, refused, project):
    torch.save((made[1], one_hot(made[2], -1., 4.) + torch.arange(10) / 100), "set.pt")
    assert "--soft softmax" in refused("import", "set.pt", "--dataset", "digits", *RECIPE)
    soft = imported("set.pt", "--dataset", "digits", *RECIPE, "--soft", "softmax")
    assert torch.allclose(soft.soft.sum(1), torch.ones(20)) and torch.equal(soft.labels, made[2])
    assert imported("set.pt", "--dataset", "digits", *RECIPE, "--soft", "argmax").soft is None


# --- what the labels mean

def tree(folder, classes, n=3):
    "A data set of pictures with another grey in each class; returns class -> its first training image."
    first = {}
    for c, name in enumerate(classes):
        for part in ("train", "test"):
            for i in range(n):
                x = (torch.arange(64).reshape(1, 8, 8) * (c + 1) + 7 * i).remainder(256).byte()
                pictures(folder/part, [x.roll(i, 2)], [name])
                (folder/part/name/"0.png").rename(folder/part/name/f"{i}.jpg.png")
                if part == "train" and not i: first[name] = x
    return first


def test_eleven_numbered_classes_keep_their_numbers(project, capfd):
    names = [str(c) for c in range(11)]
    first = tree(project/"organs", names)
    images = torch.stack([first[n] for n in names])
    np.savez("set.npz", images=images.numpy(), labels=np.arange(11))
    pictures(project/"set", images, names)
    for file in ("set.npz", "set"):
        syn = imported(file, "--dataset", str(project/"organs"), *RECIPE)
        assert "in the order of" in capfd.readouterr().out
        assert sorted(syn.classes) == sorted(names)
        for x, label in zip(syn.images, syn.labels):
            wanted = load_dataset(str(project/"organs")).normalise(first[syn.classes[label]])
            assert torch.equal(x, wanted)


def test_a_set_whose_data_set_is_not_at_hand(project, refused, capfd):
    names = [str(c) for c in range(11)]
    first = tree(project/"there"/"organs", names)
    images = torch.stack([first[n] for n in names])
    np.savez("set.npz", images=images.numpy(), labels=np.arange(11))
    said = refused("import", "set.npz", "--dataset", "organs", *RECIPE)
    for flag in ("--classes", "--shape C,H,W", "--mean", "--std", "organs"): assert flag in said
    assert "--classes" not in refused("import", "set.npz", "--dataset", "organs", "--classes", "11", *RECIPE)
    syn = imported("set.npz", "--dataset", "organs", "--classes", "11", "--shape", "1,8,8", "--mean", "0.5", "--std", "0.25", *RECIPE)
    assert syn.classes == tuple(names) and syn.mean == (0.5,) and torch.equal(syn.labels, torch.arange(11))
    capfd.readouterr()
    report = judge("out.safetensors", project/"a", "--dataset", str(project/"there"/"organs"), "--epochs", "40", "--n-nets", "1")
    assert "in the order" in capfd.readouterr().err and report["accuracy"]


def test_a_subset_of_imagenet_has_the_order_of_mtt(project):
    digits, numbers = load_dataset("digits"), (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)
    wnids = tuple(f"n{n:08d}" for n in sorted(numbers))
    woof = replace(digits, name="imagewoof", classes=wnids)
    torch.save(digits.normalise(digits.images[:10]), "images_best.pt"); torch.save(torch.arange(10), "labels_best.pt")
    syn = import_set("images_best.pt", dataset=woof)
    assert [syn.classes[c] for c in syn.labels] == [f"n{n:08d}" for n in numbers]
    syn = import_set("images_best.pt", dataset=woof, classes=wnids)
    assert torch.equal(syn.labels, torch.arange(10))


# --- contradictions and doubt

def as_dc(made, name, **more):
    torch.save({"data": [[made[1], made[2]], [-made[1], made[2]]], "accs_all_exps": {"ConvNet": [0.30, 0.32, 0.8, 0.9]}, **more}, name)
    return name


def test_contradictions_are_refused(made, project, refused):
    dc, fashion = as_dc(made, "res_DC_digits_ConvNet_2ipc.pt"), as_dc(made, "res_DC_FashionMNIST_ConvNet_2ipc.pt")
    wrong = as_dc(made, "res_DC_digits_ConvNet_50ipc.pt")
    assert "fashion-mnist" in refused("import", fashion, "--dataset", "digits")
    assert "50" in refused("import", wrong, "--dataset", "digits") and imported(wrong, "--dataset", "digits", "--ipc", "2", *FLAGS)
    for words, said in (("--ipc 5", "2 images per class"), ("--zca", "never whitens"), ("--zca --no-zca", "exclude"),
                        ("--mean 77.7 --std 95.6", "divide them by 255"), ("--classes 11", "classes = 11"), ("--shape 1,28,28", "shape"),
                        ("--claimed 0.26", "percent"), ("--index 2", "0 to 1"), ("--soft softmax", "one number")):
        assert said in refused("import", dc, "--dataset", "digits", *words.split()), words
    for mean, std, said in (("0.5", "inf", "must be finite number"), ("0.5", "nan", "must be finite number"), ("0.5", "0", "above 0"), ("0.5", "-0.5", "above 0"), ("0.5", "1e-308", "above 0"),
                            ("0.5", "1e308", "colours in [0, 1]"), ("nan", "0.5", "must be finite number"), ("-inf", "0.5", "must be finite number"), ("-0.1", "0.5", "colours in [0, 1]")):
        for absent in ([], ["--classes", "10", "--shape", "1,8,8"]):
            assert said in refused("import", dc, "--dataset", "digits" if not absent else "organs", f"--mean={mean}", f"--std={std}", *absent, *FLAGS), (mean, std)
        inside = as_dc(made, "res_DC_digits_ConvNet_2ipc_odd.pt", mean=[float(mean)], std=[float(std)])
        assert said in refused("import", inside, "--dataset", "digits", *FLAGS), (mean, std)
    np.savez("colours.npz", images=made[0].numpy(), labels=made[2].numpy())
    assert "not whitened" in refused("import", "colours.npz", "--dataset", "digits", "--recipe", "mtt", "--zca")


def test_whitening_is_asked_about_where_the_published_set_is_whitened(made, project):
    cifar = replace(load_dataset("digits"), name="cifar10")
    torch.save(made[1][::2], "images_best.pt"); torch.save(made[2][::2], "labels_best.pt")
    with pytest.raises(UserError, match="--zca or --no-zca"): import_set("images_best.pt", dataset=cifar)
    assert not import_set("images_best.pt", dataset=cifar, zca=False).experiment.zca
    assert not import_set("images_best.pt", dataset=cifar, mean=0.5, std=0.25).experiment.zca
    (project/"images_zca_best.pt").write_bytes(b"")
    assert import_set("images_best.pt", dataset=cifar).experiment.zca
    with pytest.raises(UserError, match="is whitened"): import_set("images_best.pt", dataset=cifar, zca=False)


def test_pixels_from_minus_one_to_one_are_asked_about(made, project, refused):
    np.savez("set.npz", images=(made[0].numpy() / made[0].max().item() - 0.5) / 0.5, labels=made[2].numpy())
    assert "--mean and --std" in refused("import", "set.npz", "--dataset", "digits", *RECIPE)
    assert imported("set.npz", "--dataset", "digits", *RECIPE, "--mean", "0.5", "--std", "0.5").std == (0.5,)


def test_folders_with_other_numbers_are_no_classes(made, project, refused):
    pictures(project/"set", made[0], [str(c + (c > 5)) for c in made[2].tolist()])
    assert "the folders 0, 1, 2, 3, 4, 5, 7" in refused("import", "set", "--dataset", "digits", *RECIPE)
    for words in (["--labels", "y.npy"], ["--index", "0"]): assert "one set" in refused("import", "set", "--dataset", "digits", *RECIPE, *words)


def test_an_experiment_of_several_is_said(made, project, capfd):
    dc = as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt")
    imported(dc, "--dataset", "digits", *FLAGS)
    assert "experiment 1 of 2" in capfd.readouterr().out
    assert torch.equal(imported(dc, "--dataset", "digits", "--index", "1", *FLAGS).images, -made[1])
    assert "experiment 1 of" not in capfd.readouterr().out


def test_the_constants_of_their_code(made, project):
    cifar = replace(load_dataset("digits"), name="cifar10", images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.25,) * 3)
    x = made[1].expand(-1, 3, -1, -1)
    file = as_dc((None, x, made[2]), "res_DSA_CIFAR10_ConvNet_2ipc.pt")
    assert import_set(file, dataset=cifar).std == (0.2023, 0.1994, 0.2010)
    assert import_set(file, dataset=cifar, mean="0.1,0.2,0.3", std="0.4,0.5,0.6").std == (0.4, 0.5, 0.6)
    both = as_dc((None, x, made[2]), "res_DSA_CIFAR10_ConvNet_2ipc.pt", data_oe=[[x, made[2]]] * 2)
    assert import_set(both, dataset=cifar, outliers="oe").std == cifar.std # TrustDD's own
    torch.save((x, made[2]), "set.pt")
    assert import_set("set.pt", dataset=cifar, recipe="dsa").std == cifar.std


@pytest.mark.parametrize("data, recipe, strategy, epochs", [("mnist", "dc", "crop_scale_rotate45", 1000), ("fashion-mnist", "dc", "none", 300), ("mnist", "dsa", None, 1000)])
def test_the_recipes_of_dc(made, project, data, recipe, strategy, epochs):
    file = as_dc(made, "mine.pt")
    syn = import_set(file, dataset=replace(load_dataset("digits"), name=data), recipe=recipe, method="any text: v2")
    exp = syn.experiment
    assert (exp.strategy, exp.epochs) == (strategy or Experiment().strategy, epochs)
    assert syn.card["made by"] == "any text: v2, imported" and recipe in syn.card["recipe"]


def test_all_that_is_missing_is_said_at_once(made, project, refused):
    as_dc(made, "mine.pt", data_oe=[[made[1], made[2]]] * 2)
    said = refused("import", "mine.pt")
    for flag in ("--dataset", "--recipe", "--outliers", "20 images"): assert flag in said
    (project/"flax.pt").write_bytes(b"\x82\xa6images\xc4\x01\x00")
    (project/"state.pt").write_bytes(pickle.dumps({"images": [1]}))
    np.savez("features.npz", features=np.ones((5, 512)), labels=np.arange(5))
    torch.save({"images": torch.ones(5, 512), "labels": torch.arange(5)}, "vectors.pt")
    (project/"empty").mkdir()
    for file, words in (("flax.pt", "msgpack"), ("state.pt", "a pickle"), ("features.npz", "features (5, 512)"), ("vectors.pt", "images (5, 512)"), ("empty", "no images"), ("none.pt", "not there")):
        said = refused("import", file)
        assert words in said and "torch." not in said.replace("torch.save", ""), said


def test_nothing_in_a_file_is_run(made, project, refused):
    class Evil:
        def __reduce__(self): return exec, ("open('owned', 'w')",)
    np.savez("evil.npz", images=made[1].numpy(), labels=np.array([Evil()], dtype=object))
    np.save("images_evil.npy", np.array([Evil()] * 3, dtype=object), allow_pickle=True)
    torch.save((made[1], Evil()), "evil.pt")
    torch.save({"images": np.array([Evil()], dtype=object), "labels": made[2]}, "array.pt")
    for file in ("evil.npz", "images_evil.npy", "evil.pt", "array.pt"): assert file in refused("import", file, "--dataset", "digits", *RECIPE)
    assert not (project/"owned").exists()


def test_the_set_goes_here_and_never_over_another(made, project, refused):
    as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt")
    assert main(["import", "res_DSA_digits_ConvNet_2ipc.pt", *FLAGS]) == 0 # the name says the data set
    assert DistilledSet.load("res_DSA_digits_ConvNet_2ipc.safetensors").experiment.dataset == "digits"
    assert "name another --out" in refused("import", "res_DSA_digits_ConvNet_2ipc.pt", *FLAGS)


def test_what_is_imported_is_not_written_over(made, project, refused):
    "The file that is read, labels found beside it and a picture of yours were replaced by the set."
    x, y = made[1:]
    dc = as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt")
    torch.save(x, "images_best.pt"); torch.save(y, "labels_best.pt")
    (project/"photo.png").write_text("mine")
    for file, out in ((dc, dc), ("images_best.pt", "labels_best.pt"), (dc, "photo.png")):
        assert f"{out} is there, and is not a distilled set" in refused("import", file, "--dataset", "digits", *RECIPE, "--out", out)
    for _ in range(2): assert main(["import", str(dc), "--dataset", "digits", *FLAGS, "--out", "set.safetensors"]) == 0 # over an older set


def test_tensors_without_plain_numbers_are_named(made, project, refused):
    x, y = made[1:]
    for images, labels, said in ((x.to_sparse(), y, "sparse"), (x.to(torch.complex64), y, "complex"), (x.to("meta"), y, "meta"), (x, torch.eye(10)[y].to_sparse(), "sparse")):
        torch.save((images, labels), "set.pt")
        assert said in refused("import", "set.pt", "--dataset", "digits", *RECIPE)
    torch.save((x, torch.eye(10)[y] > 0), "set.pt")
    assert torch.equal(imported("set.pt", "--dataset", "digits", *RECIPE).labels, y)


# --- the order of classes in other codes

FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion(name="fashion-mnist", classes=FASHION):
    "A data set whose folders have the names of FashionMNIST's classes, so that they sort by the alphabet."
    return replace(load_dataset("digits"), name=name, classes=tuple(sorted(classes)))


@pytest.mark.parametrize("word", ["new{:03d}", "class_{}", "{:05d}"])
def test_folders_of_a_word_and_a_number_are_labels(made, project, capfd, refused, word):
    pictures(project/"set", made[0], [word.format(c) for c in made[2].tolist()])
    syn = imported("set", "--dataset", "digits", *RECIPE)
    assert torch.equal(syn.labels, made[2]) and torch.equal(syn.images, made[1])
    assert "labels, in the order of the folders' numbers: 0 = 0" in capfd.readouterr().out
    assert torch.equal(import_set("set", dataset=fashion(), recipe="dsa").labels, torch.tensor([sorted(FASHION).index(FASHION[c]) for c in made[2]]))
    (project/"set"/word.format(9)).rename(project/"set"/word.format(10))
    assert "--classes" in refused("import", "set", "--dataset", "digits", *RECIPE)


def test_folders_from_1_are_not_the_digits_from_0(made, project, refused):
    pictures(project/"set", made[0], [str(c + 1) for c in made[2].tolist()])
    said = refused("import", "set", "--dataset", "digits", *RECIPE)
    assert "the folders 1, 2" in said and "--classes" in said
    syn = imported("set", "--dataset", "digits", *RECIPE, "--classes", ",".join(map(str, range(10))))
    assert torch.equal(syn.labels, made[2])


def test_labels_count_in_the_published_order(made, project):
    "The folders of a tree sort by the alphabet: label 0 was read as an ankle boot, and is a T-shirt."
    torch.save({"data": [[made[1], made[2]]], "accs_all_exps": {}}, "res_DC_FashionMNIST_ConvNet_2ipc.pt")
    for spelling in (FASHION, ("T-shirt/top", *FASHION[1:]), [c.lower().replace(" ", "_") for c in FASHION]):
        syn = import_set("res_DC_FashionMNIST_ConvNet_2ipc.pt", dataset=fashion(classes=spelling))
        assert [syn.classes[c] for c in syn.labels] == [spelling[c] for c in made[2]]
    assert "0 = t-shirt" in syn.provenance["imported"]["order"]
    pictures(project/"set", made[0], [FASHION[c].replace("T-shirt", "T-shirt_top") for c in made[2]])
    by_folder = import_set("set", dataset=fashion(), recipe="dsa")
    assert [by_folder.classes[c] for c in by_folder.labels] == [FASHION[c] for c in sorted(made[2], key=lambda c: FASHION[c])]
    words = "zero one two three four five six seven eight nine".split()
    torch.save((made[1], made[2]), "set.pt")
    for name, names in (("mnist", words), ("imagenette", ("tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck", "gas pump", "golf ball", "parachute"))):
        syn = import_set("set.pt", dataset=fashion(name, names), recipe="dsa")
        assert [syn.classes[c] for c in syn.labels] == [names[c] for c in made[2]]


def test_an_order_that_class_names_do_not_show_is_asked_about(made, project):
    torch.save((made[1], made[2]), "set.pt")
    cars = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for data in (fashion("cifar10", cars), fashion("my-clothes"), fashion("svhn", map(str, range(1, 11)))):
        with pytest.raises(UserError, match="give classes in the file's order"): import_set("set.pt", dataset=data, recipe="dsa")
        assert torch.equal(import_set("set.pt", dataset=data, recipe="dsa", classes=data.classes).labels, made[2])
    woof = replace(load_dataset("digits"), name="imagewoof", classes=tuple(f"n{n:08d}" for n in range(10)))
    pictures(project/"set", made[0], [f"new{c:03d}" for c in made[2].tolist()])
    with pytest.raises(UserError, match="give classes in the file's order"): import_set("set", dataset=woof, recipe="dsa")


@pytest.mark.parametrize("layout", ["dc", "mtt"])
def test_an_exported_set_keeps_the_names_of_its_classes(made, project, layout):
    "Without them our own order would be read as the published one."
    torch.save((made[1], made[2]), "set.pt")
    ours = import_set("set.pt", dataset=fashion(), recipe="dsa")
    back = import_set(ours.export(project/"theirs", layout), dataset=fashion(), recipe="dsa")
    assert torch.equal(back.labels, ours.labels) and not torch.equal(back.labels, made[2])


# --- what names and arrays say

def test_arrays_without_names(made, project, capfd):
    "np.savez(x, y) calls them arr_0 and arr_1."
    for arrays in ((made[1], made[2]), (made[2], made[1])):
        np.savez("set.npz", *(a.numpy() for a in arrays))
        syn = imported("set.npz", "--dataset", "digits", *RECIPE)
        assert torch.equal(syn.images, made[1]) and torch.equal(syn.labels, made[2])
        i = int(arrays[0] is made[2])
        assert f"arr_{i} holds the images, arr_{1 - i} the labels" in capfd.readouterr().out


def test_all_that_is_missing_without_the_data_set_is_said_at_once(made, project, refused):
    np.savez("a.npz", images=made[1].numpy(), labels=made[2].numpy())
    said = refused("import", "a.npz", "--dataset", "organs")
    for flag in ("organs", "--recipe", "--classes", "--shape C,H,W", "--mean", "--std"): assert flag in said
    assert "--classes" not in refused("import", "a.npz", "--dataset", "digits")


@pytest.mark.parametrize("method", ["DC", "dsa", "DM", "MTT"])
def test_the_constants_of_a_method_in_any_file(made, project, method):
    cifar = replace(load_dataset("digits"), name="cifar10", images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.save((made[1].expand(-1, 3, -1, -1), made[2]), "set.pt")
    assert import_set("set.pt", dataset=cifar, method=method, zca=False).std == (0.2023, 0.1994, 0.2010)
    other = import_set("set.pt", dataset=cifar, method="ours", recipe="dsa")
    assert other.std == cifar.std and "If the file was made with others, give --mean and --std" in other.provenance["imported"]["note"]


@pytest.mark.parametrize("method, asks", [("DSA", True), ("DM", True), ("MTT", False)])
def test_two_pairs_of_constants_for_cifar100(made, project, method, asks):
    "DC's code changed them; networks would have been tested on images of another scale."
    cifar = replace(load_dataset("digits"), name="cifar100", images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.save((made[1].expand(-1, 3, -1, -1), made[2]), "set.pt")
    words = dict(dataset=cifar, method=method, zca=False if method == "MTT" else None)
    if asks:
        with pytest.raises(UserError, match="add --mean and --std .*0.4914,0.4822,0.4465.*later versions 0.5071,0.4866,0.4409"): import_set("set.pt", **words)
        assert import_set("set.pt", **words, mean="0.5071,0.4866,0.4409", std="0.2673,0.2564,0.2762").std == (0.2673, 0.2564, 0.2762)
    else: assert import_set("set.pt", **words).std == (0.2023, 0.1994, 0.2010)


def test_whitening_and_a_mean_exclude_each_other(made, project, refused):
    torch.save(made[1], "images_best.pt"); torch.save(made[2], "labels_best.pt")
    words = ["import", "images_best.pt", "--zca", "--mean", "0.5", "--std", "0.25"]
    assert "whitened" in refused(*words, "--dataset", "digits")
    assert imported(*words[1:], "--dataset", "organs", "--classes", "10", "--shape", "1,8,8", *FLAGS).experiment.zca # asked for where the data set is not at hand


@pytest.mark.parametrize("name, data", [("fmnist.npz", "mnist"), ("kmnist.npz", "mnist"), ("emnist_2ipc.npz", "digits"), ("fmnist.npz", "digits")])
def test_short_names_of_other_data_sets_are_refused(made, project, refused, name, data):
    np.savez(name, images=made[1].numpy(), labels=made[2].numpy())
    assert "says" in refused("import", name, "--dataset", data, *RECIPE)


def test_the_folder_of_mtt_names_the_data_set(made, project, refused):
    (project/"CIFAR-10").mkdir(); (project/"digits").mkdir()
    for folder in ("CIFAR-10", "digits"): torch.save(made[1], f"{folder}/images_best.pt"); torch.save(made[2], f"{folder}/labels_best.pt")
    assert imported("digits", *FLAGS).experiment.dataset == imported("digits/images_best.pt", *FLAGS).experiment.dataset == "digits"
    assert "says cifar10" in refused("import", "CIFAR-10/images_best.pt", "--dataset", "digits")


def test_claims_and_counts_are_said_plainly(made, project, refused):
    dc = as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt")
    assert "ipc = 50, but it holds 2 images per class" in refused("import", dc, "--ipc", "50", *FLAGS)
    for claimed in ("65.4±0.7", "65.4 ± 0.7", "65.4+-0.7", "65.4,0.7"):
        claim = imported(dc, "--claimed", claimed, *FLAGS).provenance["imported"]["claimed"]
        assert (claim["mean"], claim["std"]) == (65.4, 0.7)
    for wrong in ("much", "0.654", "nan"): assert "such as 65.4" in refused("import", dc, "--claimed", wrong, *FLAGS)


def test_a_data_set_with_a_published_order_that_is_not_at_hand(made, project, capfd):
    "With a number of classes the labels stay as the file counts them, and are mapped when the data set is there."
    torch.save((made[1], made[2]), "set.pt")
    first = tree(project/"there"/"fashion-mnist", FASHION)
    torch.save((torch.stack([first[c] for c in FASHION]), torch.arange(10)), "ten.pt")
    absent = ["--classes", "10", "--shape", "1,8,8", "--mean", "0.5", "--std", "0.25", *RECIPE]
    for data in ("fashion-mnist", "imagewoof", "cifar10", "mine"):
        assert torch.equal(imported("set.pt", "--dataset", data, *absent).labels, made[2])
        assert "0 = 0, 1 = 1" in capfd.readouterr().out
    imported("ten.pt", "--dataset", "fashion-mnist", *absent)
    judge("out.safetensors", project/"a", "--dataset", str(project/"there"/"fashion-mnist"), "--epochs", "1", "--n-nets", "1")
    assert "0 = T-shirt, 1 = Trouser" in capfd.readouterr().err


def test_named_folders_keep_their_names_where_the_number_of_classes_is_given(made, project):
    pictures(project/"set", made[0], ["abcdefghij"[c] for c in made[2]])
    syn = imported("set", "--dataset", "letters", "--classes", "10", "--shape", "1,8,8", "--mean", "0.5", "--std", "0.25", *RECIPE)
    assert syn.classes == tuple("abcdefghij") and torch.equal(syn.labels, made[2])


@pytest.mark.parametrize("words, said", [("--classes 0 --shape 1,8,8", "2 or more"), ("--classes 1", "2 or more"), ("--shape 8,8", "must be C,H,W"),
                                         ("--shape 1,8.5,8.5", "must be C,H,W"), ("--shape 1,8,x", "must be C,H,W")])
def test_odd_numbers_of_classes_and_odd_shapes(made, refused, project, words, said):
    torch.save((made[1], made[2]), "set.pt")
    for data in ("mine", "digits"):
        assert said in refused("import", "set.pt", "--dataset", data, *words.split(), "--mean", "0.5", "--std", "0.25", *RECIPE)


def test_a_dictionary_says_what_its_labels_and_pixels_mean(made, project, refused):
    "Names of classes, mean, std and whitening count in every file with named parts, as in DC's."
    names = list("9876543210")
    torch.save(dict(images=made[1], labels=made[2], classes=names, mean=torch.full((1, 1, 1, 1), 0.5), std=[0.25]), "set.pt")
    np.savez("set.npz", images=made[1], labels=made[2], class_names=np.array(names), mean=np.array([0.5]), std=np.array([0.25]))
    for file in ("set.pt", "set.npz"):
        syn = imported(file, "--dataset", "digits", *RECIPE)
        assert torch.equal(syn.labels, 9 - made[2]) and (syn.mean, syn.std) == ((0.5,), (0.25,))
        given = imported(file, "--dataset", "digits", *RECIPE, "--classes", "0,1,2,3,4,5,6,7,8,9", "--mean", "0.1", "--std", "0.3")
        assert torch.equal(given.labels, made[2]) and given.mean == (0.1,)
    np.savez("white.npz", images=made[1], labels=made[2], zca=True)
    assert imported("white.npz", "--dataset", "digits", "--recipe", "mtt", *FLAGS).experiment.zca
    np.savez("texts.npz", images=made[1], labels=made[2].numpy().astype(str))
    assert "labels holds texts" in refused("import", "texts.npz", "--dataset", "digits", *RECIPE)


def test_pixels_of_0_to_255_less_their_mean_are_not_normalised(made, project, refused):
    np.savez("set.npz", images=made[0].numpy() - 120., labels=made[2].numpy())
    assert "neither normalised nor colours" in refused("import", "set.npz", "--dataset", "digits", *RECIPE)


def test_a_folder_above_the_classes_is_named(made, project, refused):
    pictures(project/"set"/"train", made[0], [str(int(c)) for c in made[2]])
    assert "name set/train" in refused("import", "set", "--dataset", "digits", *RECIPE)
    assert torch.equal(imported("set/train", "--dataset", "digits", *RECIPE).labels, made[2])


# --- claims

def test_the_accuracy_of_the_authors_is_kept_and_compared(made, project, capfd):
    syn = imported(as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt"), "--dataset", "digits", *FLAGS)
    claim = syn.provenance["imported"]["claimed"]
    assert claim["mean"] == pytest.approx(31) and claim["std"] == pytest.approx(2 ** 0.5) and "31.0 ± 1.4" in syn.card["claimed accuracy"]
    capfd.readouterr()
    measured = np.mean(judge("out.safetensors", project/"a")["accuracy"])
    out, err = capfd.readouterr()
    assert "claimed by its authors 31.0 ± 1.4" in out and f"here {measured:.1f}" in out
    assert ("warning" in err) == (abs(measured - 31) > 3)
    for claimed, warns in ((measured + 0.4, False), (measured + 60, True)):
        imported("res_DSA_digits_ConvNet_2ipc.pt", "--dataset", "digits", "--claimed", f"{claimed:.2f}", *FLAGS)
        capfd.readouterr()
        judge("out.safetensors", project/"a")
        assert ("outside of" in capfd.readouterr().err) == warns
    judge("out.safetensors", project/"a", "--diagnose")
    said = capfd.readouterr().out
    for cause in ("as it is", "mean and std", "whitening", "no augmentation", "step size"): assert cause in said


@pytest.mark.parametrize("words", [["show"], ["reject", "--out", "m.safetensors"]])
def test_show_and_reject_say_so_too(made, project, refused, words):
    np.savez("set.npz", images=made[1], labels=made[2])
    assert "import it first" in refused(words[0], "set.npz", *words[1:])


def test_evaluate_says_to_import_first(made, project, refused):
    np.savez("set.npz", images=made[1].numpy())
    for file in (as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt"), "set.npz", "."):
        assert f"trustdd import {file}" in refused("evaluate", file)


def test_the_help_shows_what_concerns_importing(capfd):
    with pytest.raises(SystemExit): main(["import", "--help"])
    said = capfd.readouterr().out
    for flag in ("--recipe", "--claimed", "--soft", "--no-zca", "--width", "--epochs"): assert flag in said
    for flag in ("--iterations", "--lr-img", "--corruptions", "--watch"): assert flag not in said


# --- there and back

@pytest.mark.parametrize("method, outliers", [("dsa", "none"), ("dsa", "poe"), ("random", "none")])
@pytest.mark.parametrize("layout", ["dc", "mtt", "folder"])
def test_a_set_that_is_exported_comes_back_to_the_last_digit(project, layout, method, outliers):
    small = dict(iterations=1) if method == "dsa" else {}
    with one_thread(): syn = distill(Experiment(dataset="digits", method=method, outliers=outliers, preset="smoke", ipc=2, width=4, n_nets=2, epochs=3, **small), device="cpu", progress=False)
    if layout == "folder" and len(syn.outliers):
        with pytest.raises(UserError, match="no place for outliers"): syn.export("theirs", layout)
        return
    syn.save("ours.safetensors")
    file, words = syn.export("theirs", layout), ["--dataset", "digits", *RECIPE, "--outliers", outliers]
    if layout == "mtt" and outliers != "none": words += ["--outliers-file", "theirs/outliers_best.pt"]
    back = imported(file, *words)
    for what in ("images", "labels", "outliers"): assert torch.equal(getattr(back, what), getattr(syn, what)), what
    assert (back.mean, back.std, back.classes) == (syn.mean, syn.std, syn.classes)
    assert judge("out.safetensors", project/"a") == judge("ours.safetensors", project/"b")


@pytest.mark.parametrize("layout", ["dc", "mtt"])
def test_a_whitened_set_comes_back_whitened(project, layout):
    "It came back as one that is only normalised, and was tested on images that are not whitened."
    with one_thread(): syn = distill(Experiment(dataset="digits", method="random", preset="smoke", ipc=2, zca=True), device="cpu", progress=False)
    file = syn.export("theirs", layout)
    for recipe in ("dsa", "mtt"):
        back = import_set(file, dataset="digits", recipe=recipe)
        assert back.experiment.zca and torch.equal(back.images, syn.images) and "whitened" in back.provenance["imported"]["note"]
        with pytest.raises(UserError, match="whitened"): import_set(file, dataset="digits", recipe=recipe, zca=False)
    with pytest.raises(UserError, match="no place for whitening"): syn.export("pictures", "folder")


def test_two_classes_have_two_names(made, project):
    "The labels of one were read as the other's, wherever classes are looked up by name."
    with pytest.raises(UserError, match="name one twice"): import_set(as_dc(made, "res_DSA_digits_ConvNet_2ipc.pt"), dataset="mine", classes="a,a".split(","), shape=(1, 8, 8), mean=0.5, std=0.5)
    x, y = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), [0, 1, 0, 1]
    with pytest.raises(UserError, match="two classes have one name"): from_tensors("mine", x, y, x, y, ["a", "a"])


@pytest.mark.parametrize("layout", ["mtt", "folder"])
def test_two_sets_are_not_mixed_in_one_folder(project, layout):
    "The step size, the outliers or the images of the first were read with the images of the second."
    with one_thread(): syn = distill(Experiment(dataset="digits", method="random", preset="smoke", ipc=2), device="cpu", progress=False)
    more = dict(lr=0.5) if layout == "mtt" else dict(images=syn.images.repeat(2, 1, 1, 1), labels=syn.labels.repeat(2))
    replace(syn, **more).export("theirs", layout)
    before = content(project)
    with pytest.raises(UserError, match="of another set"): syn.export("theirs", layout)
    assert content(project) == before
    replace(syn, **more).export("theirs", layout)  # the same once more
    assert content(project) == before


@pytest.mark.parametrize("layout", ["dc", "mtt"])
def test_normalisation_step_size_and_soft_labels_come_back(made, project, layout):
    cifar = replace(load_dataset("digits"), name="cifar10", images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), mean=(0.49, 0.48, 0.45), std=(0.247, 0.243, 0.261))
    made_of = dict(experiment=to_dict(Experiment(dataset="cifar10", method="mtt", ipc=2, preset="smoke")), data="x")
    syn = DistilledSet(made[1].expand(-1, 3, -1, -1).contiguous(), made[2], torch.empty(0, 3, 8, 8), cifar.classes, cifar.mean, cifar.std, made_of, 1 / 30, one_hot(made[2], 0.05, 0.55))
    lr = ["0.03333333333333333"] if layout == "dc" else [None]
    back = import_set(syn.export(project/"theirs", layout), dataset=cifar, lr=lr[0], zca=False)
    assert (back.mean, back.std, back.lr) == (syn.mean, syn.std, syn.lr) # and not the constants of their code
    assert torch.equal(back.soft, syn.soft) and torch.equal(back.images, syn.images) and torch.equal(back.labels, syn.labels)
