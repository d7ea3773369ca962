"""What an NVIDIA GPU gives: whether it computes what a CPU computes, how fast a run's parts are at paper size, and what a whole run costs.

Only what a user calls is called: `distill`, `train`, `make_buffer`, `collect_logits`. With `--device cpu --quick` the same code is rehearsed on a CPU,
at tiny sizes.
"""
import os, sys, tempfile, time, traceback, warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import plain
from measuring import CLASSES, SHAPE, cell, differences, gemm_rate, has_cifar10, pictures, settle, store, table, tf32, timed, too_different, work_of
from trustdd.core.checks import UserError
from trustdd.core.experiment import Experiment
from trustdd.core.randomness import pick_device, stream
from trustdd.data.augment import draw
from trustdd.data.catalog import load_dataset
from trustdd.data.dataset import from_tensors
from trustdd.data.poe import outlier_pool
from trustdd.networks.architectures import from_experiment
from trustdd.networks.training import train
from trustdd.distillation.buffers import make_buffer
from trustdd.distillation.distillation import distill
from trustdd.distillation.starting_images import real_rows
from trustdd.evaluation.logits import collect_logits
from trustdd.evaluation.report import report_from_logits

CPU = torch.device("cpu")


class NoGPU(UserError): "There is no NVIDIA GPU to measure on."


def device(asked, quick):
    "The GPU that was asked for; raises `NoGPU` if there is none, unless a CPU shall rehearse."
    if str(asked) == "cpu" and quick: return CPU
    if torch.cuda.is_available() and str(asked) != "cpu": return pick_device(asked or "cuda")
    raise NoGPU("bench-gpu needs an NVIDIA GPU that PyTorch can use, and was given none; what it does is rehearsed on a CPU by: python benchmarks/bench.py --gpu --device cpu --quick")


# What is measured on -------------------------------------------------------------------------------------------------

def data_set(n):
    "`n` training and 500 test images in ten classes."
    return from_tensors("random-pictures", pictures(n, 4, "train"), torch.arange(n) % CLASSES, pictures(500, 4, "test"), torch.arange(500) % CLASSES, range(CLASSES))


def small(asked, **fields):
    "DSA with pseudo-outliers, small enough for the CPU: what both devices compute."
    exp = Experiment(**dict(dataset="random-pictures", method="dsa", outliers="poe", ipc=10, preset="cifar") | fields)
    return replace(exp, width=8, batch_real=8) if asked.quick else exp


def paper(asked, ipc, **fields):
    "The same at paper size, with at most ten outer steps to an iteration."
    exp = Experiment(**dict(dataset="random-pictures", method="dsa", outliers="poe", ipc=ipc, preset="paper") | fields)
    return replace(exp, width=8, batch_real=8, iterations=20, outer=min(exp.outer, 2), inner=min(exp.inner, 2), n_nets=2) if asked.quick else replace(exp, outer=min(exp.outer, 10))


def random_set(exp, data):
    "A distilled set of real images, as it is before the first step."
    return distill(replace(exp, method="random"), data, "cpu", progress=False)


class Enough(Exception): "Raised after as many iterations as were wanted."


def laps(exp, data, on, count, look):
    "`look()` before and after each of the first `count` iterations of a whole run."
    seen = [look()]
    def lap(state):
        seen.append(look())
        if len(seen) > count: raise Enough
    try: distill(exp, data, on, on_step=lap, progress=False)
    except Enough: pass
    return seen


# Does the GPU compute what the CPU computes? -------------------------------------------------------------------------

def weights(nets): return torch.cat([p.detach().cpu().flatten() for net in nets for p in net.parameters()])


def moved(exp, data, on):
    "Images, outliers, and how far they have moved, after the experiment's iterations."
    begin, end = random_set(exp, data), distill(exp, data, on, progress=False)
    return {"images": end.images, "outliers": end.outliers, "movement of the images": end.images - begin.images, "movement of the outliers": end.outliers - begin.outliers}


def distilled_alike(asked, data, kind, act, limits, **loops):
    "Distilling on both sides: with a sigmoid the difference is rounding alone; with ReLU some units fall on the other side of zero."
    exp = small(asked, act=act, **loops)
    allowed = dict(zip(("images", "outliers", "movement of the images", "movement of the outliers"), (limits[0], limits[0], limits[1], limits[1])))
    return f"{kind}, {act}", allowed, moved(exp, data, asked.device), moved(exp, data, CPU)


def networks_alike(asked, data):
    "Networks trained on the device and on the CPU."
    exp = small(asked, act="sigmoid", n_nets=3, epochs=6, batch_eval=64)
    syn, still = random_set(exp, data), replace(exp, epochs=1, lr_eval=1e-30) # a step size that moves nothing: the weights before training
    begin = weights(train(syn, device="cpu", exp=still, progress=False))
    there, here = (weights(train(syn, device=on, exp=exp, progress=False)) for on in (asked.device, CPU))
    return "networks trained, sigmoid", {"weights": 1e-4, "movement of the weights": 1e-3}, *({"weights": w, "movement of the weights": w - begin} for w in (there, here))


def experts_alike(asked, data):
    "Experts after two epochs, as their files hold them."
    exp = Experiment(dataset="random-pictures", method="mtt", outliers="poe", ipc=10, preset="cifar", act="sigmoid", zca=False, experts=3, train_epochs=2, max_start_epoch=1, expert_epochs=1)
    if asked.quick: exp = replace(exp, width=8)
    def made(on):
        with tempfile.TemporaryDirectory() as folder:
            buffer = make_buffer(exp, folder, data, on, progress=False)
            begin, end = (torch.stack([buffer.snapshot(k, epoch) for k in range(exp.experts)]) for epoch in (0, exp.train_epochs))
            return {"parameters": end, "movement of the parameters": end - begin}
    return "experts, sigmoid", {"parameters": 1e-4, "movement of the parameters": 1e-3}, made(asked.device), made(CPU)


def logits_alike(asked, data):
    "The answers of the same networks on both devices."
    exp = small(asked, n_nets=3, epochs=2)
    nets, ood = train(random_set(exp, data), device="cpu", exp=exp, progress=False), {"squares": pictures(300, 8, "ood")}
    there, here = (collect_logits(nets, data, ood, n_test=200, device=on).values for on in (asked.device, CPU))
    return "logits", dict.fromkeys(here, 1e-4), there, here


@contextmanager
def waiting():
    "A list that grows whenever the host waits for the GPU."
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try: yield seen
        finally: torch.cuda.set_sync_debug_mode("default")


def waits(asked, data):
    "How often the host waits in an epoch of training, and in an outer step; None on a CPU."
    if asked.device.type != "cuda": return dict(epoch=None, outer_step=None)
    exp, count = small(asked, n_nets=3, outer=4, inner=3), lambda seen: sum("synchroniz" in str(w.message) for w in seen)
    syn, numbers = random_set(exp, data), []
    for epochs in (5, 15):
        with waiting() as seen: train(syn, device=asked.device, exp=replace(exp, epochs=epochs), progress=False)
        numbers.append(count(seen))
    with waiting() as seen: by_lap = laps(exp, data, asked.device, 3, lambda: count(seen))
    return dict(epoch=(numbers[1] - numbers[0]) / 10, outer_step=(by_lap[-1] - by_lap[-2]) / exp.outer)


def correct(asked, facts):
    "Both devices, in strict float32: what is wrong, if anything is."
    tf32(False)
    data, wrong = data_set(400 if asked.quick else 2000), []
    steps = [("one step", dict(iterations=1, outer=1, inner=0)), ("a short distillation", dict(iterations=2, outer=3, inner=3))]
    limits = {("one step", "sigmoid"): (1e-5, 1e-3), ("one step", "relu"): (2e-3, 0.1), ("a short distillation", "sigmoid"): (1e-5, 2e-3), ("a short distillation", "relu"): (2e-2, 0.3)}
    checks = [partial(distilled_alike, asked, data, kind, act, limits[kind, act], **loops) for act in ("sigmoid", "relu") for kind, loops in steps]
    for check in (*checks, *(partial(f, asked, data) for f in (networks_alike, experts_alike, logits_alike))):
        name, allowed, there, here = check()
        facts["differences"][name] = found = differences(allowed, there, here)
        wrong += too_different(name, allowed, found, f"{asked.device.type} and cpu")
        print(f"    {name}: largest difference {max(found.values()):.2g} ({max(found, key=found.get)})", flush=True)
    facts["host_waits"] = waits(asked, data)
    print(f"    the host waits for the GPU: {facts['host_waits']}", flush=True)
    if facts["host_waits"]["epoch"]: wrong.append(f"the host waits {facts['host_waits']['epoch']:g} times in an epoch of training; it should never")
    return [], wrong


# How fast is it? -----------------------------------------------------------------------------------------------------

def row(name, ours, plainly, work, rate, **more):
    return dict(name=name, ours_s=ours, plain_s=plainly, ratio=plainly and ours and plainly / ours, share_of_gemm=work and ours and work / ours / rate, compile_s=None) | more


def most_memory(work, on):
    "(seconds, what `work()` returns, megabytes of the GPU at most; None on a CPU)."
    if on.type == "cuda": torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats(on)
    seconds, made = timed(work, on)
    return seconds, made, torch.cuda.max_memory_allocated(on) / 1e6 if on.type == "cuda" else None


def slope(work, few, many, on):
    "Seconds of one more unit: the difference of two calls, so that what happens once does not count; a third before them has compiled what is compiled."
    work(few)
    a, b = (timed(lambda: work(n), on)[0] for n in (few, many))
    return max(b - a, 1e-9) / (many - few)


def plain_step(asked, exp, data):
    "(seconds of an outer step on images and outliers, seconds of an epoch of inner training), as the published loop has them."
    on, labels = asked.device, torch.arange(CLASSES).repeat_interleave(exp.ipc).to(asked.device)
    begin, net = random_set(exp, data), from_experiment(exp, SHAPE, CLASSES, stream(0, "network", 0), on).train()
    images, outliers = begin.images.to(on), begin.outliers.to(on)
    whole = data.normalise(data.images, on) # the published loop has all images as floats on the GPU
    pool, draws = outlier_pool(exp, data, device=on), lambda purpose: lambda c: stream(0, purpose, 0, 0, c)
    corrupted = [pool.draw(c, exp.batch_real, draws("outliers")(c)) for c in range(CLASSES)]
    sides = ((images, "omega", lambda c: whole[real_rows(data, c, exp.batch_real, draws("real")(c)).to(on)], plain.class_criterion),
             (outliers, "omega-outliers", lambda c: corrupted[c], lambda c: plain.outlier_criterion))

    def one_step():
        for syn, purpose, real, criterion in sides:
            syn = syn.clone().requires_grad_()
            plain.outer_step(net, syn, torch.optim.SGD([syn], lr=exp.lr_img, momentum=exp.momentum_img), real, lambda c: draw(exp.strategy, 1, draws(purpose)(c)), criterion, exp.align_corners)

    epoch = plain_epoch(exp, net, images, labels, outliers, torch.optim.SGD(net.parameters(), lr=exp.lr_net), exp.batch_net)
    for work in (one_step, epoch): work()
    return tuple(min(timed(work, on)[0] for _ in range(asked.repeats)) for work in (one_step, epoch))


def plain_epoch(exp, net, images, labels, outliers, optimizer, batch):
    "() -> one epoch of the published loop, in order: what the order is does not change the time."
    n_batches = -(-len(images) // batch)
    loader_in = plain.loader(images, labels, order=range(len(images)), batch=batch)
    loader_out = plain.loader(outliers, order=range(len(outliers)), batch=-(-len(outliers) // n_batches)) if len(outliers) else None
    return lambda: plain.train_epoch(net, loader_in, loader_out, optimizer, stream(0, "plain"), exp)


def step(ipc, rounded, asked, facts):
    "An outer step with the inner training that belongs to it: a whole iteration, divided by its outer steps."
    tf32(rounded)
    exp, on = paper(asked, ipc), asked.device
    data = data_set(800 if asked.quick else 50_000)
    def clock(): settle(on); return time.perf_counter()
    _, times, mb = most_memory(lambda: laps(exp, data, on, 1 + asked.repeats, clock), on)
    first, *later = (b - a for a, b in zip(times, times[1:]))
    _, (one_step, epoch), plain_mb = most_memory(lambda: plain_step(asked, exp, data), on)
    net, part = from_experiment(exp, SHAPE, CLASSES, stream(0, "network", 0), on), exp.inner * (exp.outer - 1) / exp.outer
    work = work_of(net, 2 * CLASSES * (exp.batch_real + exp.ipc)) + part * work_of(net, CLASSES * (exp.ipc + exp.outliers_per_slot))
    name = f"gpu-step-{ipc}{'-tf32' * rounded}: an outer step and {part:.3g} epochs of inner training, IPC {ipc} and as many outliers, width {exp.width}, batch {exp.batch_real}"
    if ipc == 10: facts["whole"][f"iteration{', TF32' * rounded}"] = dict(ours=min(later), plain=(one_step + part * epoch) * exp.outer, first=first)
    return [row(name, min(later) / exp.outer, one_step + part * epoch, work, facts["rates"]["tf32" if rounded else "float32"],
                compile_s=max(0, first - min(later)), ours_mb=mb, plain_mb=plain_mb)], []


def training(asked, facts):
    "An epoch of one network on 100 images and 100 outliers."
    tf32(False)
    exp = paper(asked, 10)
    syn, few, many = random_set(exp, data_set(400)), *((2, 6) if asked.quick else (50, 350))
    on, n = asked.device, exp.n_nets
    net, labels = from_experiment(exp, SHAPE, CLASSES, stream(0, "network", 0), on), syn.labels.to(on)
    optimizer = torch.optim.SGD(net.parameters(), lr=exp.lr_eval, momentum=exp.momentum_eval, weight_decay=exp.weight_decay)
    epoch = plain_epoch(exp, net, syn.images.to(on), labels, syn.outliers.to(on), optimizer, exp.batch_eval)
    epoch()
    plainly = min(timed(epoch, on)[0] for _ in range(3))
    def trained(epochs): return train(syn, device=on, exp=replace(exp, epochs=epochs), progress=False)
    seconds = slope(trained, few, many, on) / n
    facts["whole"]["epoch"] = dict(ours=seconds, plain=plainly)
    name = f"gpu-train: an epoch of one of {n} networks on {len(syn.images)} images and {len(syn.outliers)} outliers, width {exp.width}"
    work = work_of(net, len(syn.images) + len(syn.outliers))
    return [row(name, seconds, plainly, work, facts["rates"]["float32"])], []


def answers(asked, facts):
    "The logits of all networks on the test images and six OOD sets."
    tf32(False)
    exp, on, m = paper(asked, 10), asked.device, 100 if asked.quick else 2000
    data, nets = data_set(400), train(random_set(exp, data_set(400)), device=asked.device, exp=replace(exp, epochs=2), progress=False)
    ood = {f"squares of {grain}": pictures(m, grain, "ood", grain) for grain in (1, 2, 4, 8, 16, 32)}
    sets = [data.test_images, *(x[torch.arange(min(m, 500))] for x in ood.values())]
    look = lambda: collect_logits(nets, data, ood, device=on)
    def plainly():
        for net in nets:
            for x in sets: plain.scores_of(net.eval(), [(data.normalise(part, on), torch.zeros(len(part), dtype=torch.long)) for part in x.split(256)], "msp")
    look(); plainly()
    n = len(nets) * sum(map(len, sets))
    ours, theirs = (min(timed(work, on)[0] for _ in range(asked.repeats)) for work in (look, plainly))
    facts["whole"]["images answered a second"] = dict(ours=n / ours, plain=n / theirs)
    return [row(f"gpu-evaluate: logits of {len(nets)} networks on {sum(map(len, sets))} images in {len(sets)} sets, width {exp.width}", ours, theirs,
                work_of(nets[0], n, backward=False), facts["rates"]["float32"])], []


def experts(asked, facts):
    "An epoch of one of several experts on real images."
    tf32(False)
    n = 400 if asked.quick else 10_000
    exp = Experiment(dataset="random-pictures", method="mtt", ipc=10, preset="paper", zca=False, experts=2 if asked.quick else 16, train_epochs=3, max_start_epoch=1, expert_epochs=1)
    if asked.quick: exp = replace(exp, width=8)
    data, on = data_set(n), asked.device
    with tempfile.TemporaryDirectory() as folder:
        buffer = make_buffer(exp, folder, data, on, progress=False)
        seconds = min(buffer.log(k)[-1]["seconds"] for k in range(exp.experts))
    net = from_experiment(exp, SHAPE, CLASSES, stream(0, "expert", 0), on)
    epoch = plain_epoch(exp, net, data.normalise(data.images, on), data.labels.to(on), data.images[:0], torch.optim.SGD(net.parameters(), lr=exp.lr_teacher), exp.batch_train)
    plainly = timed(epoch, on)[0]
    return [row(f"gpu-experts: an epoch of one of {exp.experts} experts on {n} images, width {exp.width}", seconds, plainly, work_of(net, n), facts["rates"]["float32"])], []


# What does a whole run cost? -----------------------------------------------------------------------------------------

def whole(asked, facts):
    "DSA with pseudo-outliers, IPC 10, preset paper, from the first iteration to the logits: reckoned from its parts, and run if the budget allows."
    exp, known = replace(paper(asked, 10), **{} if not asked.quick else dict(iterations=3, epochs=4)), facts["whole"]
    needed = dict(iteration=partial(step, 10, False), epoch=training) | {"images answered a second": answers}
    rows = [r for name, part in needed.items() if name not in known for r in part(asked, facts)[0]]
    images = exp.n_nets * 70_000
    reckoned = {side: exp.iterations * known["iteration"][side] + exp.n_nets * exp.epochs * known["epoch"][side] + images / known["images answered a second"][side] for side in ("ours", "plain")}
    reckoned["ours"] += max(known["iteration"]["first"] - known["iteration"]["ours"], 0)
    what = f"DSA with pseudo-outliers, IPC 10, {exp.iterations} iterations, {exp.n_nets} networks, 70,000 test images"
    rows.append(row(f"gpu-whole: {what}; reckoned from {asked.repeats} iterations", reckoned["ours"], reckoned["plain"], None, 1))
    left = (asked.budget or 0) - (time.perf_counter() - asked.begin)
    print(f"    reckoned: {reckoned['ours']:.0f} s, plainly {reckoned['plain']:.0f} s; {left:.0f} s of the budget are left" if asked.budget else f"    reckoned: {reckoned['ours']:.0f} s, plainly {reckoned['plain']:.0f} s; no --budget to run it", flush=True)
    if 1.1 * reckoned["ours"] <= left: rows.append(really(asked, facts, exp, f"gpu-whole-run: {what}; run from beginning to end"))
    return rows, []


def really(asked, facts, exp, name):
    "The whole run, on CIFAR-10 if it is there; the seconds of its parts and what came of it go into the facts."
    tf32(False)
    on, data = asked.device, load_dataset("cifar10") if has_cifar10() and not asked.quick else data_set(400 if asked.quick else 50_000)
    exp, begin, known = replace(exp, dataset=data.name), time.perf_counter(), facts["whole"]
    losses = []
    a, syn = timed(lambda: distill(exp, data, on, on_step=lambda state: losses.append(state.losses[-1]), progress=False), on)
    b, nets = timed(lambda: train(syn, device=on, exp=exp, progress=False), on)
    ood = {f"squares of {grain}": pictures(len(data.test_images), grain, "ood", grain) for grain in (1, 2, 4, 8, 16, 32)}
    c, logits = timed(lambda: collect_logits(nets, data, ood, device=on), on)
    report = report_from_logits(logits)
    known["run"] = dict(data=data.source, distilling=a, training=b, answering=c, accuracy=report.accuracy, first_loss=losses[0], last_loss=losses[-1])
    print(f"    run: distilled in {a:.0f} s, trained in {b:.0f} s, answered in {c:.0f} s; accuracy {report.accuracy_mean:.1f}%", flush=True)
    return row(name, time.perf_counter() - begin, None, None, 1)


# All of it ------------------------------------------------------------------------------------------------------------

PARTS = {"correct": correct, "step-10": partial(step, 10, False), "train": training, "evaluate": answers, "step-1": partial(step, 1, False), "step-50": partial(step, 50, False),
         "step-10-tf32": partial(step, 10, True), "experts": experts, "whole": whole}


def rates(on, side=None):
    "Operations per second of a matrix product in float32, and in TF32 where there is one."
    tf32(False)
    strict = gemm_rate(on, side)
    if on.type != "cuda": return dict(float32=strict, tf32=strict)
    tf32(True)
    try: return dict(float32=strict, tf32=gemm_rate(on, side))
    finally: tf32(False)


def run(asked, facts, out):
    "All parts that were asked for. What is known is stored after each, so that a machine that goes away takes little with it."
    rows, wrong, asked.begin = [], [], time.perf_counter()
    facts |= dict(rates=rates(asked.device, 256 if asked.quick else None), repeats=asked.repeats, quick=asked.quick, differences={}, whole={}, wrong=wrong)
    facts["gemm_gflops"] = facts["rates"]["float32"] / 1e9
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compiled"
        for i, name in enumerate(asked.names):
            print(f"[{i + 1}/{len(asked.names)}] {name}", flush=True)
            torch.compiler.reset()
            try: more, bad = PARTS[name](asked, facts)
            except Exception as e: # the other parts may still be worth the machine's time
                traceback.print_exc()
                more, bad = [], [f"{name} failed: {type(e).__name__}: {(str(e) or '-').splitlines()[0]}"]
            rows += more; wrong += bad
            for r in more: print(f"    {r['name']}: ours {cell(r['ours_s'], '.4g')} s, plain {cell(r['plain_s'], '.4g')} s", flush=True)
            facts["seconds"] = time.perf_counter() - asked.begin
            if out: store(out, "gpu", rows, facts, remember=i == len(asked.names) - 1)
    print(f"\n{table(rows)}\n\nmatrix product: {facts['rates']['float32'] / 1e12:.3g} TFLOP/s in float32, {facts['rates']['tf32'] / 1e12:.3g} in TF32; {facts['seconds']:.0f} s in all")
    if wrong: sys.exit("\n".join(wrong))
