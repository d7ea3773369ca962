"""One gradient of trajectory matching, in a process of its own, for its time and its memory."""
from copy import deepcopy
from dataclasses import replace

import torch

from measuring import CLASSES, SHAPE, alone, cell, differences, first_to_go, free_memory, memory, pictures, tf32, timed, too_different
from trustdd.core.experiment import Experiment
from trustdd.core.randomness import stream
from trustdd.networks.architectures import from_experiment
from trustdd.networks.compute import flops
from trustdd.networks.parameters import flatten
from trustdd.distillation.trajectory_gradient import (
    steps, Student, trajectory_gradient, unrolled_gradient)

SIDES, MOST_UNROLLED, FULL = {"ours": trajectory_gradient, "plain": unrolled_gradient}, 20, (10, 20, 40, 80)
LENGTHS = {f"trajectory-{n}": n for n in FULL} # line of the table -> steps of the student
WHAT = ("loss", "gradient of the images", "gradient of the step size")
AGREE = dict(zip(WHAT, (1e-3, 0.1, 0.1))) | {f"{what}, float64, 3 steps on 10 images": 1e-10 for what in WHAT} # README.md says why so different


def trajectory_stage(n, quick, device):
    "(experiment, network) of `n` steps on all 100 images, or of `n`/5 steps at width 16."
    exp = Experiment(dataset="random-pictures", method="mtt", outliers="none", ipc=10, preset="paper", syn_steps=n, batch_syn=0)
    if quick: exp = replace(exp, width=16, syn_steps=n // 5)
    return exp, from_experiment(exp, SHAPE, CLASSES, stream(exp.seed, "network", 0), device).train()


def trajectory_alone(side, n, quick, device, threads):
    "One gradient of trajectory matching, in a process that has done nothing else: seconds, megabytes above idle, and the numbers; or how much it needs, if that is more than there is."
    first_to_go()
    torch.set_num_threads(threads)
    tf32(False)
    exp, net = trajectory_stage(n, quick, device)
    images = ((pictures(CLASSES * exp.ipc, 4, "synthetic") / 255 - 0.5) / 0.25).to(device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(exp.ipc)
    theta, lr = flatten(net), torch.tensor(exp.syn_lr, device=device)
    target = theta + 0.01 * torch.randn(len(theta), generator=stream(exp.seed, "bench", "target")).to(device)

    def gradient(count, every=1, to=torch.float32):
        student = Student(deepcopy(net).to(to), labels[::every], exp)
        at, goal, x, rate = (v.to(to) for v in (theta, target, images[::every], lr))
        loss, to_images, _, to_lr = SIDES[side](student, at, goal, x, x[:0], rate, steps(replace(exp, syn_steps=count), 0, len(x), 0))
        return loss, to_images, to_lr

    gradient(1, every=len(images))
    idle, free, peaks = memory(device), free_memory(device), []
    for count in (1, 3): # the warm-up
        gradient(count)
        peaks.append(memory(device, most=True))
    if side == "plain" and idle is not None:
        needs = peaks[1] - idle + (peaks[1] - peaks[0]) / 2 * (exp.syn_steps - 3)
        if 1.1 * needs > free: return dict(needs_mb=needs, free_mb=free)
    seconds, made = timed(lambda: gradient(exp.syn_steps), device)
    mb = None if idle is None else memory(device, most=True) - idle
    numbers = dict(zip(AGREE, (v.cpu().numpy() for v in (*made, *gradient(3, every=exp.ipc, to=torch.float64)))))
    return dict(seconds=seconds, mb=mb, idle_mb=idle, numbers=numbers)


def measure_trajectory(name, asked):
    "As `measure`, with megabytes in the row: both sides in turn, each time in a fresh process; the shorter time and the larger memory count."
    exp, net = trajectory_stage(LENGTHS[name], asked.quick, asked.device)
    title = f"{name}: {exp.syn_steps} steps of a student on {CLASSES * exp.ipc} images, width {exp.width}"
    print(f"    {title}", flush=True)
    sides, got, note = ["ours", "plain"][:1 + (LENGTHS[name] <= MOST_UNROLLED)], {"ours": [], "plain": []}, {}
    for _ in range(asked.repeats):
        for side in sides[:]:
            r = alone(f"{name}, {side}", trajectory_alone, side, LENGTHS[name], asked.quick, asked.device, torch.get_num_threads())
            if "needs_mb" in r:
                note = dict(plain_needs_mb=r["needs_mb"])
                sides.remove(side)
                print(f"    {side} does not fit: about {r['needs_mb']:.0f} MB needed, {r['free_mb']:.0f} MB available; not run", flush=True)
                continue
            got[side].append(r)
            print(f"    {side} {r['seconds']:.4g} s, {cell(r['mb'], '.0f') or 'unknown'} MB above {cell(r['idle_mb'], '.0f') or 'unknown'} MB when idle", flush=True)
    best, best_plain = (min((r["seconds"] for r in got[s]), default=None) for s in ("ours", "plain"))
    mb, mb_plain = (max((r["mb"] for r in got[s] if r["mb"] is not None), default=None) for s in ("ours", "plain"))
    found = {}
    if got["plain"]: found = differences(AGREE, *({k: torch.from_numpy(v) for k, v in got[s][-1]["numbers"].items()} for s in ("ours", "plain")))
    if found: print(f"    largest difference {max(found.values()):.2g} ({max(found, key=found.get)})", flush=True)
    forward, first = flops(net, SHAPE), flops(net.body[0], SHAPE)
    work = CLASSES * exp.ipc * (exp.syn_steps * 3 * (3 * forward - first) - (2 * forward - first)) # README.md counts them
    row = dict(name=title, ours_s=best, plain_s=best_plain, ratio=best_plain and best_plain / best, share_of_gemm=work / best, compile_s=None,
               ours_mb=mb, plain_mb=mb_plain, **note)
    return row, found, too_different(title, AGREE, found)


def promises(rows):
    "What the constant-memory gradient and bfloat16 must show, as far as these rows, {line: row}, tell: a list of {what, value, limit, held}."
    def one(what, limit, a, b):
        known = a is not None and b is not None
        return dict(what=what, value=a / b if known else None, limit=limit, held=a / b <= limit if known else None)
    of = lambda line, key: rows.get(line, {}).get(key)
    return [one("memory of ours at 80 steps, relative to 10 steps", 1.3, of("trajectory-80", "ours_mb"), of("trajectory-10", "ours_mb")),
            one("seconds of ours at 10 steps, relative to the unrolled gradient", 1.4, of("trajectory-10", "ours_s"), of("trajectory-10", "plain_s")),
            *(one(f"seconds of {line} in bfloat16, relative to {side}", limit, of(f"{line}-bfloat16", "ours_s"), of(line, key))
              for line in ("outer-paper", "train-paper")
              for side, key, limit in (("float32", "ours_s", 1 / 1.6), ("the plain loop", "plain_s", 1 / 4)))]


def spoken(promise):
    "A promise in words."
    if promise["held"] is None: return f"{promise['what']}: not measured; at most {promise['limit']} is promised"
    return f"{promise['what']}: {promise['value']:.2f}, at most {promise['limit']} is promised: {'held' if promise['held'] else 'NOT HELD'}"
