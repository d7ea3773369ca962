"""The most memory that loading, distilling and evaluating CIFAR-10 takes, each in a process of its own, and how much it may take."""
from dataclasses import replace

import torch

from measuring import CLASSES, alone, cell, first_to_go, has_cifar10, memory, pictures, tf32, timed, write_tree
from trustdd.core.experiment import Experiment
from trustdd.core.storage import data_root
from trustdd.data.catalog import load_dataset
from trustdd.data.dataset import from_tensors
from trustdd.networks.training import train
from trustdd.distillation.distillation import distill
from trustdd.evaluation.evaluation import evaluate

# CIFAR-10 is 184 MB of bytes; its training images as float32 would be 614 MB: none of these leaves room for one such copy beside what there has to be.
LIMITS = {"memory-load": 500, "memory-distill": 1000, "memory-evaluate": 1200} # line of the table -> megabytes
OOD = ("gaussian", "uniform", "corrupted-jigsaw", "corrupted-speckle")         # sets that need no folder


def data_set(name, root, quick):
    "CIFAR-10 or another folder, or as many random pictures if there is no root."
    if root: return load_dataset(name, root)
    n, m = (400, 40) if quick else (50_000, 10_000)
    return from_tensors(name, pictures(n, 4, "train"), torch.arange(n) % CLASSES, pictures(m, 4, "test"), torch.arange(m) % CLASSES, range(CLASSES))


def experiment(name, quick, **fields):
    "DSA with pseudo-outliers, 10 images a class, preset cifar."
    exp = Experiment(**dict(dataset=name, method="dsa", outliers="poe", ipc=10, preset="cifar", n_test=0, ood=OOD) | fields)
    return replace(exp, width=8, batch_real=8, iterations=1, outer=2, inner=2) if quick else exp # too little work to compile for


class Enough(Exception): "Raised after the first iteration."


def distil(exp, data, device):
    "The first iteration of a whole run, compiled as a whole run would be."
    def stop(state): raise Enough
    try: distill(exp, data, device, on_step=stop, progress=False)
    except Enough: pass


def judge(exp, data, device):
    "One network, two epochs on a distilled set, and its answers to all test images and four OOD sets."
    syn = distill(exp, data, device, progress=False)
    evaluate(train(syn, device=device, progress=False), syn, data, device=device)


def memory_alone(line, name, root, quick, device, threads):
    "Seconds, and megabytes that came on top of what the process held after its imports."
    first_to_go()
    torch.set_num_threads(threads)
    tf32(False)
    before = memory(device)
    def work():
        data = data_set(name, root, quick)
        if line == "memory-distill": distil(experiment(name, quick), data, device)
        exp = experiment(name, quick, n_nets=1, epochs=2)
        if line == "memory-evaluate": judge(replace(exp, method="random"), data, device)
    seconds, _ = timed(work, device)
    return dict(seconds=seconds, mb=None if before is None else memory(device, most=True) - before)


def measure_memory(line, asked, scratch):
    "A row, and a line for what is above its limit."
    name, root, what = "cifar10", data_root(), "CIFAR-10"
    if asked.quick or not has_cifar10():
        name, root, what = "pictures", scratch if line == "memory-load" else None, "random pictures"
        if root and not (root/name).is_dir(): write_tree(root/name, 400 if asked.quick else 4000)
    if line == "memory-load": load_dataset(name, root) # decoded once, before it is measured
    done = {"memory-load": "loaded", "memory-distill": "loaded, and one iteration of DSA with pseudo-outliers, IPC 10, preset cifar",
            "memory-evaluate": "loaded, and one network trained and judged on all test images and four OOD sets, preset cifar"}[line]
    title = f"{line}: {what} {done}"
    print(f"    {title}", flush=True)
    got = alone(title, memory_alone, line, name, root, asked.quick, asked.device, torch.get_num_threads())
    print(f"    {got['seconds']:.4g} s, {cell(got['mb'], '.0f') or 'unknown'} MB, at most {LIMITS[line]} MB", flush=True)
    row = dict(name=title, ours_s=got["seconds"], plain_s=None, ratio=None, share_of_gemm=None, compile_s=None, mb=got["mb"], limit_mb=LIMITS[line])
    above = got["mb"] is not None and got["mb"] > LIMITS[line]
    return row, [f"{line}: {got['mb']:.0f} MB, at most {LIMITS[line]} MB is allowed"] * above
