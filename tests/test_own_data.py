"""The user's own folders: nothing becomes a class that is none, nothing vanishes without a word, and what cannot
be used is refused in one line that names the place."""
import hashlib
import os
import shutil
import socket
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from pytorch_ood.dataset.img import textures

from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.data import catalog, readers
from trustdd.data.catalog import load_aux, load_dataset, load_ood, outside_source
from trustdd.data.identity import have, outside_identity
from trustdd.data.pixels import as_pixels

pytestmark = pytest.mark.usefixtures("project")


def picture(path, seed=0, side=16, mode="RGB", **save):
    "Write a random picture, and return its pixels."
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return pixels


def tree(folder, classes=("cat", "dog"), n=5):
    "A folder of class folders with different pictures."
    for i, c in enumerate(classes):
        for j in range(n): picture(folder/c/f"{j}.png", 100 * i + j)
    return folder


def refusal(f, *args):
    "What a call is refused with: one line."
    with pytest.raises(UserError) as e: f(*args)
    line = str(e.value)
    assert "\n" not in line and line.isprintable() and len(line) < 900
    return line


# --- splits and classes

@pytest.mark.parametrize("train, test", [
    ("train", "test"), ("Train", "Testing"), ("TRAINING", "val"), ("training", "VALID"), ("train", "validation"),
    ("Train", "dev"), ("train", "Eval")])
def test_a_split_is_not_a_class(project, train, test):
    for part, n in ((train, 4), (test, 2)): tree(project/"mine"/part, n=n)
    made = load_dataset("./mine")
    assert made.classes == ("cat", "dog") and (len(made.images), len(made.test_images)) == (8, 4)
    assert made.source == (f"./mine: tree mine/{train} and tree mine/{test}, 8 training and 4 test images "
                           "of 2 classes")


def test_a_class_may_be_called_like_a_split(project):
    tree(project/"mine", ("train", "plane", "ship"))
    assert load_dataset("./mine").classes == ("plane", "ship", "train")


def test_two_training_folders(project):
    for part in ("train", "Training", "test"): tree(project/"mine"/part)
    line = refusal(load_dataset, "./mine")
    assert "two folders for one part" in line and "train" in line and "Training" in line


def test_a_test_folder_beside_classes(project):
    "It is not read as a class, whichever way it was meant."
    tree(project/"mine")
    tree(project/"mine"/"test")
    assert "test holds no images but 2 folders of images (cat, dog)" in refusal(load_dataset, "./mine")


def test_domains_above_the_classes(project):
    "As in PACS; the line names the level to give, and that level can be read."
    for domain in ("art", "photo", "sketch"): tree(project/"pacs"/domain)
    line = refusal(load_dataset, "./pacs")
    assert f"name {project/'pacs'/'art'} as the data set" in line and "2 folders of images (cat, dog)" in line
    assert load_dataset(str(project/"pacs"/"art")).classes == ("cat", "dog")
    assert len(load_ood("./pacs", (3, 16, 16))) == 30 # labels play no role there


@pytest.mark.parametrize("beside", [(), ("office",)], ids=["alone", "two collections"])
def test_a_level_above_the_domains(project, monkeypatch, beside):
    "Ten thousand images were decoded before that was noticed."
    for collection in ("pacs", *beside):
        for domain in ("art", "photo"): tree(project/"all"/collection/domain)
    monkeypatch.setattr(readers, "decode", None)
    assert "holds no images but 2 folders of images (art, photo)" in refusal(load_dataset, "./all")


def test_one_folder_of_images_in_each_class(project):
    "As in TinyImageNet."
    for c in ("n01", "n02"): tree(project/"mine"/c, ("images",))
    assert load_dataset("./mine").classes == ("n01", "n02")


def test_a_class_without_images(project):
    tree(project/"mine")
    (project/"mine"/"cow").mkdir()
    (project/"mine"/"cow"/"list.csv").touch()
    assert "no image in the class folder cow (1 file skipped: 1 .csv)" in refusal(load_dataset, "./mine")
    (project/"mine"/"cow"/".hidden.png").touch()
    assert "cow" in refusal(load_dataset, "./mine")
    picture(project/"mine"/"cow"/"a.jpg")
    picture(project/"mine"/"cow"/"b.jpg", 1)
    assert load_dataset("./mine").n_classes == 3


def test_images_beside_the_class_folders(project):
    picture(tree(project/"mine")/"cover.png")
    assert load_dataset("./mine").source.endswith("of 2 classes; left out: 1 in no class folder")


# --- files

KINDS = dict(avif=dict(quality=100, subsampling="4:4:4"), bmp={}, dds={}, gif={}, icns={}, ico={},
             j2k={}, jp2={}, jpg=dict(quality=100, subsampling=0), pcx={}, png={}, ppm={}, qoi={}, sgi={}, tga={},
             tiff={}, webp=dict(lossless=True))

def test_every_format_that_pillow_opens(project):
    mine, there = tree(project/"mine"), Image.registered_extensions()
    kinds = [k for k in KINDS if there.get(f".{k}") in Image.SAVE]
    assert len(kinds) > 10
    for i, k in enumerate(kinds): picture(mine/"dog"/f"more-{i}.{k}", i, **KINDS[k])
    made = load_dataset("./mine@16")
    assert len(made.images) + len(made.test_images) == 10 + len(kinds) and "skipped" not in made.source


def test_an_unusual_format_has_the_same_pixels(project):
    for i, kind in enumerate(("tga", "jp2", "qoi", "pcx")): pixels = picture(project/"mine"/f"{kind}.{kind}", 7)
    read = load_ood("./mine", (3, 16, 16))
    assert len(read) == 4 and all(np.array_equal(x.permute(1, 2, 0), pixels) for x in read)


def test_what_is_no_image_is_counted(project):
    for part in ("train", "test"): tree(project/"mine"/part)
    for name in ("a.txt", "b.TXT", "c.eps", "d.pdf", "e.mp4", "README", ".hidden", "f.csv"):
        (project/"mine"/"train"/"dog"/name).touch()
    note = "(7 files skipped: 2 .txt, 1 .csv, 1 .eps, 1 .mp4, 2 of other kinds)"
    assert f"tree mine/train {note} and tree mine/test, 10" in load_dataset("./mine").source
    sentence = outside_source("./mine", (3, 16, 16), part="train")
    assert sentence == f"./mine: tree mine/train {note}, 10 images, resized to 16x16"
    assert outside_source("./mine", (3, 16, 16)) == "./mine: tree mine/test, 10 images, resized to 16x16"


def test_no_program_is_started_for_a_picture(project, monkeypatch):
    "PostScript under a picture's name."
    tree(project/"mine")
    (project/"mine"/"dog"/"0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n")
    monkeypatch.setattr("subprocess.Popen", None)
    assert "cannot read image" in refusal(load_dataset, "./mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("door", ["an OOD set", "an auxiliary set", "a set of pictures to import", "a picture", "a device as a picture"])
def test_a_pipe_at_every_door(project, door):
    "None of them waits for somebody to write into it."
    tree(project/"mine")
    os.mkfifo(project/"mine"/"dog"/"pipe.png")
    if door in ("an OOD set", "an auxiliary set"):
        load, part = (load_ood, "test") if door == "an OOD set" else (load_aux, "train")
        assert len(load("./mine", (3, 16, 16))) == 10 and "1 pipe" in outside_source("./mine", (3, 16, 16), part=part)
    if door == "a set of pictures to import":
        from trustdd.distillation.importers import import_set
        assert len(import_set("mine", dataset="digits", shape=("3", "16", "16"), classes=("cat", "dog"), recipe="dsa", zca=False, preset="smoke",
                              mean=("0.5",) * 3, std=("0.5",) * 3).images) == 10
    if "picture" in door and "import" not in door:
        path = project/"mine"/"dog"/"pipe.png" if door == "a picture" else "/dev/zero"
        assert "no regular file" in refusal(as_pixels, [str(path)], (3, 16, 16))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_sockets_and_devices_are_not_opened(project):
    "Reading from the pipe would wait for ever."
    for part in ("train", "test"): tree(project/"mine"/part)
    odd = project/"mine"/"train"/"dog"
    os.mkfifo(odd/"pipe.png")
    (odd/"device.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(odd) # the path of a socket must be short
        try: s.bind("socket.png")
        finally: os.chdir(here)
        source = load_dataset("./mine").source
    assert "(3 files skipped: " in source
    for kind in ("pipe", "socket", "device"): assert f"1 {kind}" in source


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_images_are_read_as_a_viewer_shows_them(project, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save = dict(png={}, jpg=dict(quality=100), webp=dict(lossless=True))[kind]
    for i in range(2): picture(project/"mine"/f"{i}.{kind}", i, exif=exif, **save)
    shown = ImageOps.exif_transpose(Image.open(project/"mine"/f"0.{kind}")).convert("RGB")
    assert np.array_equal(load_ood("./mine", (3, 16, 16))[0].permute(1, 2, 0), np.asarray(shown))


@pytest.mark.parametrize("load", [load_dataset, lambda name: load_ood(name, (3, 8, 8)),
                                  lambda name: load_aux(name, (3, 8, 8))], ids=["dataset", "ood", "aux"])
def test_shapes_that_only_transparency_shows(project, load):
    "Black icons: without alpha every pixel is black."
    for c in ("arrow", "cross"):
        for i in range(4):
            icon = Image.new("RGBA", (8, 8))
            icon.paste((0, 0, 0, 255), (i, i, i + 3, i + 3))
            (project/"icons"/c).mkdir(parents=True, exist_ok=True)
            icon.save(project/"icons"/c/f"{i}.png")
    line = refusal(load, "./icons")
    assert "one and the same colour" in line and "transparency" in line and "icons" in line


def broken_link(mine): (mine/"dog"/"lost.png").symlink_to("nowhere.png")
def broken_class(mine): (mine/"cow").symlink_to("/not/mounted/cow")
def circle(mine): (mine/"dog"/"again").symlink_to(mine)
def undecodable(mine): os.close(os.open(os.fsencode(mine/"dog")+b"/\xff\xfe.png", os.O_CREAT))
def undecodable_class(mine): os.mkdir(os.fsencode(mine)+b"/\xff")
def two_lines(mine): (mine/"dog"/"two\nlines.png").touch()
ODD = {broken_link: ("lost.png", "leads nowhere"), broken_class: ("cow", "leads nowhere"), circle: ("again", "link back"),
       undecodable: ("udcff", "not a text"), undecodable_class: ("udcff", "not a text"), two_lines: ("two", "not a text")}

@pytest.mark.parametrize("make", ODD, ids=lambda f: f.__name__)
def test_what_cannot_be_listed(project, refused, make):
    make(tree(project/"mine"))
    for line in (refusal(load_dataset, "./mine"), refused("distill", "--dataset", "./mine", "--preset", "smoke")):
        for part in ODD[make]: assert part in line


def test_a_folder_that_may_not_be_read(project, monkeypatch):
    tree(project/"mine")
    real = os.scandir
    def scandir(path):
        if str(path).endswith("dog"): raise PermissionError(13, "Permission denied", str(path))
        return real(path)
    monkeypatch.setattr(os, "scandir", scandir)
    line = refusal(load_dataset, "./mine")
    assert "cannot read the folder" in line and "dog: Permission denied" in line


# --- names

@pytest.mark.parametrize("name, instead", [("noise", "gaussian for the known set"), ("dtd", "textures for the known set"),
                                           ("gaussian", "rename it"), ("digits", "rename it"), ("skimage-text", "rename it")])
def test_a_folder_with_the_name_of_a_built_in_set(project, name, instead):
    mine = tree(project/"data"/name)
    load = load_dataset if name == "digits" else lambda name: load_ood(name, (3, 16, 16))
    line = refusal(load, name)
    assert f"write {mine} for the folder, or {instead}" in line
    assert len(load_ood(str(mine), (3, 16, 16))) == 10
    if "known" in instead and name == "noise": assert len(load_ood("gaussian", (3, 16, 16))) == 2000


def test_a_data_set_prints_as_one_line(project):
    made = load_dataset(str(tree(project/"mine")))
    for text in (str(made), repr(made.whitened())):
        assert "8 training and 2 test images of 3x16x16, 2 classes" in text and "\n" not in text and "tensor" not in text
    assert repr(made.whitened()).endswith(", whitened)")


# --- kept on disk

def test_images_decoded_by_older_rules_are_decoded_again(project, monkeypatch):
    "The older file stays as it is, for an older version that may still want it."
    tree(project/"mine")
    with monkeypatch.context() as older:
        older.setattr(readers, "RULES", 0)
        old = load_dataset("./mine")
    kept = list((project/"data"/".cache").iterdir())
    catalog._dataset.cache_clear()
    decoded, upright = [], readers._upright
    def counted(image):
        decoded.append(image)
        return upright(image)
    monkeypatch.setattr(readers, "_upright", counted)
    new = load_dataset("./mine")
    assert len(decoded) == 10 and new.images.equal(old.images)
    assert set(kept) < set((project/"data"/".cache").iterdir())
    catalog._dataset.cache_clear()
    load_dataset("./mine")
    assert len(decoded) == 10


def test_a_whole_experiment_with_own_data(project):
    "Names in a readable form reach the run's description."
    from trustdd.distillation.distillation import distill
    for part in ("Training", "dev"): tree(project/"mine"/part)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exp = Experiment("./mine", outliers="poe", preset="smoke", ipc=1, iterations=1)
        syn = distill(exp, device="cpu", progress=False)
    assert syn.classes == ("cat", "dog") and syn.shape == (3, 16, 16)


# --- downloads

class Interrupted(BaseException): "Ctrl-C, or a power cut."


FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {} # Python 3.11.3 and older have none


@pytest.fixture
def interrupt_after(project, monkeypatch):
    "pytorch-ood's Textures with an archive of 30 pictures; unpacking stops after as many as the list that this yields says."
    archive, stops = project/"server"/"textures.tar.gz", []
    for i in range(30): picture(project/"server"/"dtd"/"images"/("dotted", "woven")[i % 2]/f"{i}.png", i)
    with tarfile.open(archive, "w:gz") as t: t.add(project/"server"/"dtd", "dtd")
    def fetched(url, root, filename, md5):
        with tarfile.open(shutil.copy(archive, os.path.join(root, filename))) as t:
            for m in [m for m in t if m.isfile()]:
                if stops and stops[0] == 0: stops.clear(); raise Interrupted
                t.extract(m, root, **FILTER)
                if stops: stops[0] -= 1
    monkeypatch.setattr(textures, "download_and_extract_archive", fetched)
    monkeypatch.setattr(textures.Textures, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return stops


@pytest.mark.parametrize("pictures", [0, 7, 29])
def test_an_interrupted_download_is_no_data_set(project, interrupt_after, pictures):
    "7 of 30 pictures with the archive beside them were the data set from then on."
    interrupt_after.append(pictures)
    with pytest.raises(Interrupted): load_ood("textures", (3, 16, 16))
    assert not have("textures")
    assert len(load_ood("textures", (3, 16, 16))) == 30 and have("textures")
    assert [p.name for p in (project/"data"/".download").iterdir() if not p.name.endswith(".lock")] == ["textures"]


def test_a_half_that_is_there_already_is_refused(project, interrupt_after):
    "As an older version has left it; its decoded images are not taken either, nor their identity."
    load_ood("textures", (3, 16, 16))
    whole = outside_identity("textures", "test", (3, 16, 16))
    for one in (project/"data"/".download").rglob("woven/*.png"): one.unlink()
    line = refusal(load_ood, "textures", (3, 16, 16))
    assert "textures holds 15 of the 30 files in textures-r1_0_1.tar.gz" in line and "delete it" in line
    refusal(outside_identity, "textures", "test", (3, 16, 16))
    shutil.rmtree(project/"data"/".download"/"textures")
    assert len(load_ood("textures", (3, 16, 16))) == 30
    assert outside_identity("textures", "test", (3, 16, 16)) == whole


def test_decoded_images_of_a_download_follow_its_files(project, interrupt_after):
    "They were stamped with the word download, and stayed whatever became of the files."
    load_ood("textures", (3, 16, 16))
    before = outside_identity("textures", "test", (3, 16, 16))
    there = project/"data"/".download"/"textures"
    for name in ("textures-r1_0_1.tar.gz", "dtd/images/woven/1.png"): assert (there/name).is_file()
    with tarfile.open(there/"textures-r1_0_1.tar.gz", "w:gz") as t: t.add(there/"dtd"/"images"/"dotted", "dtd/images/dotted")
    textures.Textures.tgz_md5 = hashlib.md5((there/"textures-r1_0_1.tar.gz").read_bytes()).hexdigest() # another edition
    shutil.rmtree(there/"dtd"/"images"/"woven")
    assert len(load_ood("textures", (3, 16, 16))) == 15
    assert outside_identity("textures", "test", (3, 16, 16)) != before
