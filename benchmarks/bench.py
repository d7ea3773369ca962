"""Time the package's hot paths against plain versions of the same work, and check that both give the same numbers.

`python benchmarks/bench.py` prints a table and writes `latest.json` and `latest-machine.json` beside itself; README.md says what is measured and how.
"""
import argparse, json, multiprocessing, os, platform, re, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import plain
from trustdd.augment import draw
from trustdd.buffers import flatten
from trustdd.config import Experiment, UserError, atomic_write, check_choice, data_root, pick_device, stream
from trustdd.data import _dataset as datasets_in_memory, from_tensors, load_dataset
from trustdd.distillation import commit
from trustdd.evaluation import collect_logits, report_from_logits
from trustdd.gradient_matching import _match_images, _match_outliers, images_seen, real_rows, sgd_epoch, start
from trustdd.networks import compiled, flops, from_experiment, initialise
from trustdd.ood import METRICS, SCORES
from trustdd.poe import outlier_pool
from trustdd.trajectory_matching import Student, steps, trajectory_gradient, unrolled_gradient

HERE, SHAPE, CLASSES = Path(__file__).resolve().parent, (3, 32, 32), 10


@dataclass(frozen=True)
class Case:
    "One line of the table: the same work, done by the package and plainly."
    name:str            # what is done, with its sizes
    ours:object         # () -> {what: tensor}
    plain:object        # () -> {what: tensor}, the same
    allowed:dict        # what -> the largest difference, relative to the largest value
    work:float=None     # floating-point operations of one call that are certain; None: not about arithmetic
    compiled:bool=False # does the first call of `ours` compile?
    per_call:int=1      # how many units, such as epochs, a call does


# What is measured ---------------------------------------------------------------------------------------------------

def pictures(n, grain, *key):
    "Random colour images, uint8, of squares of `grain` pixels."
    x = torch.randint(256, (n, SHAPE[0], SHAPE[1] // grain, SHAPE[2] // grain), generator=stream(0, "bench", *key), dtype=torch.uint8)
    return x.repeat_interleave(grain, 2).repeat_interleave(grain, 3)


def stage(preset, outliers, quick, device):
    "(experiment, data set, outlier pool, starting state, network) at the preset's sizes, or tiny ones."
    exp = Experiment(dataset="random-pictures", method="dsa", outliers=outliers, ipc=10, preset=preset)
    if quick: exp = replace(exp, width=exp.width // 8, batch_real=8)
    n = CLASSES * exp.batch_real * 5 // 4
    parts = ((pictures(count, 4, part), torch.arange(count) % CLASSES) for part, count in (("train", n), ("test", 40 if quick else 1000)))
    (images, labels), (test_images, test_labels) = parts
    data = from_tensors(exp.dataset, images, labels, test_images, test_labels, range(CLASSES))
    pool = outlier_pool(exp, data, device=device)
    net = from_experiment(exp, SHAPE, CLASSES, stream(exp.seed, "network", 0), device)
    return exp, data, pool, start(exp, data, pool, device), net


def work_of(net, images, backward=True):
    "Certain operations for so many images: forward, or forward and backward without the first layer's input gradient."
    forward = flops(net, SHAPE)
    return images * (3 * forward - flops(net.body[0], SHAPE) if backward else forward)


def outer(preset, quick, device):
    "One outer step of distillation: all classes, then all outlier slots, from the start."
    exp, data, pool, begin, net = stage(preset, "poe", quick, device)
    fast, twin = compiled(net, SHAPE, images_seen(exp, CLASSES)), deepcopy(net)
    draws = lambda purpose: lambda c: stream(exp.seed, purpose, 0, 0, c)
    whole = data.normalise(data.images, device)
    corrupted = [pool.draw(c, exp.batch_real, draws("outliers")(c)) for c in range(CLASSES)]

    def ours():
        state = deepcopy(begin)
        _match_images(exp, data, state, net, fast, draws, device)
        _match_outliers(exp, pool, state, net, fast, draws)
        return outcome(state.images, state.outliers)

    def plainly():
        images, outliers = (x.clone().requires_grad_() for x in (begin.images, begin.outliers))
        sides = ((images, "omega", lambda c: whole[real_rows(data, c, exp.batch_real, draws("real")(c))], plain.class_criterion),
                 (outliers, "omega-outliers", lambda c: corrupted[c], lambda c: plain.outlier_criterion))
        for syn, purpose, real, criterion in sides:
            optimizer = torch.optim.SGD([syn], lr=exp.lr_img, momentum=exp.momentum_img)
            plain.outer_step(twin, syn, optimizer, real, lambda c: draw(exp.strategy, 1, draws(purpose)(c)), criterion, exp.align_corners)
        return outcome(images.detach(), outliers.detach())

    def outcome(images, outliers):
        return {"images": images, "outliers": outliers, "step of the images": images - begin.images, "step of the outliers": outliers - begin.outliers}

    name = f"outer-{preset}: {CLASSES} classes and {CLASSES} outlier slots, width {exp.width}, batch {exp.batch_real}, IPC {exp.ipc}"
    allowed = {"images": 1e-4, "outliers": 1e-4, "step of the images": 2e-2, "step of the outliers": 2e-2}
    return Case(name, ours, plainly, allowed, work_of(net, 2 * CLASSES * (exp.batch_real + exp.ipc)), fast is not net)


def training(preset, outliers, quick, device):
    "Epochs of a fresh network on a distilled set."
    exp, _, _, syn, net = stage(preset, outliers, quick, device)
    epochs, twin, n = 2 if quick else dict(paper=4, cifar=10)[preset], deepcopy(net), len(syn.images) + len(syn.outliers)
    fast = compiled(net, SHAPE, exp.n_nets * exp.epochs * n)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(exp.ipc)

    def trained(model, one_epoch):
        initialise(model, stream(exp.seed, "evaluation", 0)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=exp.lr_eval, momentum=exp.momentum_eval, weight_decay=exp.weight_decay)
        for epoch in range(epochs): one_epoch(optimizer, stream(exp.seed, "training", 0, epoch))
        return {"weights": torch.cat([p.detach().flatten() for p in model.parameters()])}

    def our_epoch(optimizer, generator):
        sgd_epoch(fast, optimizer, syn.images, labels, syn.outliers, generator, exp, exp.batch_eval)

    order, order_out, steps = [], [], -(-len(syn.images) // exp.batch_eval)
    loader_in = plain.loader(syn.images, labels, order=order, batch=exp.batch_eval)
    loader_out = plain.loader(syn.outliers, order=order_out, batch=-(-len(syn.outliers) // steps)) if len(syn.outliers) else None

    def plain_epoch(optimizer, generator):
        order[:] = torch.randperm(len(syn.images), generator=generator).tolist()
        order_out[:] = torch.randperm(len(syn.outliers), generator=generator).tolist()
        plain.train_epoch(twin, loader_in, loader_out, optimizer, generator, exp)

    tail, beside = ("-outliers", f" and {len(syn.outliers)} outliers") if exp.opc else ("", "")
    name = f"train-{preset}{tail}: one epoch on {len(syn.images)} images{beside}, width {exp.width}"
    ours, plainly = partial(trained, net, our_epoch), partial(trained, twin, plain_epoch)
    return Case(name, ours, plainly, {"weights": 1e-3}, work_of(net, epochs * n), fast is not net, epochs)


def evaluation(preset, quick, device):
    "One network, an InD test set and six OOD sets; accuracy, and five metrics of three scores."
    exp, data, _, _, net = stage(preset, "none", quick, device)
    net, n = net.eval(), len(data.test_images)
    ood = {f"squares of {grain}": pictures(n, grain, "ood", grain) for grain in (1, 2, 4, 8, 16, 32)}
    ready = {name: (data.normalise(x), torch.zeros(n, dtype=torch.long)) for name, x in ood.items()}
    test, scores = (data.normalise(data.test_images), data.test_labels), {k: SCORES[k] for k in plain.SCORES}

    def ours():
        report = report_from_logits(collect_logits([net], data, ood, device=device), scores)
        return outcome(report.accuracy[0], [report.ood_values[o][s][m][0] for s in scores for o in ood for m in METRICS])

    def plainly():
        accuracy, result = plain.ood_suite(net, test, ready)
        return outcome(accuracy, [value for s in scores for o in ood for value in result[s][o]])

    def outcome(accuracy, values): return {"accuracy": torch.tensor(accuracy), "metrics": torch.tensor(values)}

    name = f"evaluate-{preset}: {n} InD and {len(ood)} x {n} OOD images, {len(scores)} scores, width {exp.width}"
    return Case(name, ours, plainly, {"accuracy": 2e-3, "metrics": 5e-3}, work_of(net, (1 + len(ood)) * n, backward=False))


def write_tree(folder, n):
    "Class folders of `n` training and `n`/4 test images, lossless webp."
    for part, count in (("train", n), ("test", n // 4)):
        for i, image in enumerate(pictures(count, 2, part)):
            at = folder/part/f"class{i % CLASSES}"
            at.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(at/f"{i:05}.webp", lossless=True)


def loading(quick, device, scratch):
    "A data set from the folder's cache, as every start but the first finds it, against decoding its images."
    name, root = "cifar10", data_root()
    if quick or not ((root/name/"train").is_dir() and (root/name/"test").is_dir()):
        name, root = "pictures", scratch
        write_tree(root/name, 400 if quick else 4000)

    def ours():
        datasets_in_memory.cache_clear()
        data = load_dataset(name, root)
        return {"images": data.images, "labels": data.labels, "test images": data.test_images, "test labels": data.test_labels}

    def plainly():
        (images, labels), (test_images, test_labels) = (plain.load_folder(root/name/part) for part in ("train", "test"))
        return {"images": images, "labels": labels, "test images": test_images, "test labels": test_labels}

    n = sum(len(x) for what, x in ours().items() if "images" in what)
    what = "CIFAR-10, as a folder of webp files" if name == "cifar10" else "synthetic folder of lossless webp files"
    return Case(f"load: {what}, {n:,} images", ours, plainly, dict.fromkeys(ours(), 0))


CASES = {f"outer-{p}": partial(outer, p) for p in ("paper", "cifar")}
CASES |= {f"train-{p}{tail}": partial(training, p, o) for p in ("paper", "cifar") for tail, o in (("", "none"), ("-outliers", "poe"))}
CASES |= {f"evaluate-{p}": partial(evaluation, p) for p in ("paper", "cifar")} | {"load": loading}


# One iteration of trajectory matching, each in a process of its own, for its memory -----------------------------------

SIDES, MOST_UNROLLED, FULL = {"ours": trajectory_gradient, "plain": unrolled_gradient}, 20, (10, 20, 40, 80)
LENGTHS = {f"trajectory-{n}": n for n in FULL} # line of the table -> steps of the student
WHAT = ("loss", "gradient of the images", "gradient of the step size")
AGREE = dict(zip(WHAT, (1e-3, 0.1, 0.1))) | {f"{what}, float64, 3 steps on 10 images": 1e-10 for what in WHAT} # README.md says why so different


def trajectory_stage(n, quick, device):
    "(experiment, network) of `n` steps on all 100 images, or of `n`/5 steps at width 16."
    exp = Experiment(dataset="random-pictures", method="mtt", outliers="none", ipc=10, preset="paper", syn_steps=n, batch_syn=0)
    if quick: exp = replace(exp, width=16, syn_steps=n // 5)
    return exp, from_experiment(exp, SHAPE, CLASSES, stream(exp.seed, "network", 0), device).train()


def memory(device, most=False):
    "Megabytes (10⁶ bytes) of this process now, or at most since it began; None where the system does not tell."
    if device.type == "cuda": return (torch.cuda.max_memory_allocated if most else torch.cuda.memory_allocated)(device) / 1e6
    # not resource.ru_maxrss: a child inherits its parent's through fork and exec
    return _kilobytes("/proc/self/status", "VmHWM" if most else "VmRSS")


def free_memory(device):
    "Megabytes that a process can still have; infinite where the system does not tell."
    return torch.cuda.mem_get_info(device)[0] / 1e6 if device.type == "cuda" else _kilobytes("/proc/meminfo", "MemAvailable") or float("inf")


def _kilobytes(path, field):
    "Megabytes (10⁶ bytes) of a line such as `VmRSS:  1234 kB`."
    try: return next(int(l.split()[1]) for l in open(path) if l.startswith(field + ":")) * 1024 / 1e6
    except (OSError, StopIteration): return None


def trajectory_alone(side, n, quick, device, threads):
    "One gradient of trajectory matching, in a process that has done nothing else: seconds, megabytes above idle, and the numbers; or how much it needs, if that is more than there is."
    if os.path.exists("/proc/self/oom_score_adj"): Path("/proc/self/oom_score_adj").write_text("1000") # should memory run out after all: this process first
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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
            try:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                    r = fresh.submit(trajectory_alone, side, LENGTHS[name], asked.quick, asked.device, torch.get_num_threads()).result()
            except BrokenProcessPool: sys.exit(f"{name}: the process of {side!r} was killed; memory is likely to have run out")
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
    "What the constant-memory gradient must show, as far as these rows, {line: row}, tell: a list of {what, value, limit, held}."
    def one(what, limit, a, b):
        known = a is not None and b is not None
        return dict(what=what, value=a / b if known else None, limit=limit, held=a / b <= limit if known else None)
    of = lambda line, key: rows.get(line, {}).get(key)
    return [one("memory of ours at 80 steps, relative to 10 steps", 1.3, of("trajectory-80", "ours_mb"), of("trajectory-10", "ours_mb")),
            one("seconds of ours at 10 steps, relative to the unrolled gradient", 1.4, of("trajectory-10", "ours_s"), of("trajectory-10", "plain_s"))]


def spoken(promise):
    "A promise in words."
    if promise["held"] is None: return f"{promise['what']}: not measured; at most {promise['limit']} is promised"
    return f"{promise['what']}: {promise['value']:.2f}, at most {promise['limit']} is promised: {'held' if promise['held'] else 'NOT HELD'}"


# How it is measured -------------------------------------------------------------------------------------------------

def timed(work, device):
    "(seconds, what `work()` returns), with everything on the device done."
    settle = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    settle(); begin = time.perf_counter()
    made = work()
    settle()
    return time.perf_counter() - begin, made


def gemm_rate(device, n=2048, repeats=8):
    "Floating-point operations per second of a float32 matrix product of side `n`, the best of several."
    a, b = (torch.rand(n, n, device=device) for _ in range(2))
    torch.mm(a, b)
    return 2 * n**3 / min(timed(lambda: torch.mm(a, b), device)[0] for _ in range(repeats))


def differences(allowed, ours, plainly):
    "What -> largest difference over largest value; infinite where shapes differ."
    def one(a, b): return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.shape == b.shape else float("inf")
    return {what: one(ours[what].double(), plainly[what].double()) for what in allowed}


def too_different(name, allowed, found):
    "A line for each difference that is not allowed."
    return [f"{name}: ours and plain differ in the {what} by {found[what]:.2g}, allowed is {limit:.2g}"
            for what, limit in allowed.items() if what in found and not found[what] <= limit]


def measure(case, device, repeats):
    "(row with operations per second for its share, differences, those not allowed): one call of ours first, then both sides in turn, the best of `repeats`."
    first, _ = timed(case.ours, device)
    times = []
    for i in range(repeats):
        (a, made), (b, made_plainly) = timed(case.ours, device), timed(case.plain, device)
        times.append((a, b))
        print(f"    ours {a / case.per_call:.4g} s, plain {b / case.per_call:.4g} s", flush=True)
    found = differences(case.allowed, made, made_plainly)
    print(f"    largest difference {max(found.values()):.2g} ({max(found, key=found.get)})", flush=True)
    best, best_plain = (min(t) for t in zip(*times))
    row = dict(name=case.name, ours_s=best / case.per_call, plain_s=best_plain / case.per_call, ratio=best_plain / best,
               share_of_gemm=case.work and case.work / best, compile_s=max(0.0, first - best) if case.compiled else None)
    return row, found, too_different(case.name, case.allowed, found)


def machine(device):
    "What the numbers were measured on, in words."
    if device.type == "cuda": return torch.cuda.get_device_name(device)
    try: model = next(l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    except (OSError, StopIteration): model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} CPUs"


def cell(value, form): return "" if value is None else format(value, form)


def columns(r):
    "The row as texts; what was not measured is blank."
    plain_mb = f"does not fit: {r['plain_needs_mb']:.0f}" if "plain_needs_mb" in r else cell(r.get("plain_mb"), ".0f")
    return [r["name"], cell(r["ours_s"], ".4g"), cell(r["plain_s"], ".4g"), cell(r["ratio"], ".2f"), cell(r["share_of_gemm"], ".0%"),
            cell(r["compile_s"], ".1f"), cell(r.get("ours_mb"), ".0f"), plain_mb]


HEAD = ["", "ours, s", "plain, s", "ratio", "of gemm", "compile, s", "ours, MB", "plain, MB"]


def table(rows):
    "The rows as text."
    lines = [HEAD, *map(columns, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip() for line in lines)


def write_readme():
    "Put what the stored results say, each with the machine and commit it was measured on, between the marks of README.md."
    parts = []
    for name in ("latest", "full"):
        try: rows, facts = (json.loads((HERE/f"{n}.json").read_text(encoding="utf-8")) for n in (name, f"{name}-machine"))
        except FileNotFoundError: continue
        lines = [HEAD, ["---"] * len(HEAD), *map(columns, rows)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append(f"`{name}.json`: {facts['machine']}, {facts['device']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}, "
                     f"matrix product {facts['gemm_gflops']:.0f} GFLOP/s.")
        parts += ["\n".join(f"- {spoken(p)}" for p in told)] if (told := [p for p in facts.get("promises", []) if p["held"] is not None]) else []
    text, n = re.subn(r"(<!-- results[^>]*-->\n).*(<!-- end of results -->)", lambda m: m[1] + "\n\n".join(parts) + "\n" + m[2],
                      (HERE/"README.md").read_text(encoding="utf-8"), flags=re.S)
    if n != 1: sys.exit("benchmarks/README.md must have one line '<!-- results ... -->' and, after it, one '<!-- end of results -->'")
    atomic_write(HERE/"README.md", text)


def arguments():
    parser = argparse.ArgumentParser(description="Time the package's hot paths against plain versions of the same work.")
    parser.add_argument("--only", help=f"some of the lines, by commas: {', '.join([*CASES, *LENGTHS])}")
    parser.add_argument("--full", action="store_true", help=f"trajectory matching alone, at {FULL[0]} to {FULL[-1]} steps: minutes, and gigabytes for the plain side")
    parser.add_argument("--readme", action="store_true", help="measure nothing; write the stored results into README.md")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and agree? The times mean nothing")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")
    parser.add_argument("--repeats", type=int, default=2, help="timings of each side, of which the best counts (default 2)")
    parser.add_argument("--out", type=Path, help="folder for the two files; beside this script for a whole or a full run, else nothing is written")
    asked = parser.parse_args()
    try:
        asked.device = pick_device(asked.device)
        if asked.only and asked.full: raise UserError("only and full exclude each other")
        known = [*CASES, *LENGTHS]
        asked.names = ([check_choice("only", name, known) for name in asked.only.split(",")] if asked.only else
                       list(LENGTHS) if asked.full else [*CASES, f"trajectory-{FULL[0]}"])
        if asked.repeats < 1 or asked.threads is not None and asked.threads < 1: raise UserError("threads and repeats must be 1 or more")
    except UserError as e: parser.error(str(e))
    return asked


def main():
    asked, begin = arguments(), time.perf_counter()
    if asked.readme: write_readme(); return
    if asked.threads: torch.set_num_threads(asked.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    facts = dict(machine=machine(asked.device), device=str(asked.device), threads=torch.get_num_threads(),
                 torch=torch.__version__, python=platform.python_version(), commit=commit())
    print(*(f"{k}: {v}" for k, v in facts.items()), sep="; ", flush=True)
    rate, rows, found, wrong = gemm_rate(asked.device), [], {}, []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compiled" # so that compile seconds are those of a first time
        for i, name in enumerate(asked.names):
            torch.compiler.reset()
            if name in LENGTHS:
                print(f"[{i + 1}/{len(asked.names)}]", flush=True)
                row, found[name], bad = measure_trajectory(name, asked)
                rows.append(row); wrong += bad
                continue
            case = CASES[name](asked.quick, asked.device, **({"scratch": Path(scratch)} if name == "load" else {}))
            print(f"[{i + 1}/{len(asked.names)}] {case.name}{' (compiling first)' * case.compiled}", flush=True)
            row, found[name], bad = measure(case, asked.device, asked.repeats)
            rows.append(row); wrong += bad
    rate = max(rate, gemm_rate(asked.device))
    for row in rows: row["share_of_gemm"] = row["share_of_gemm"] and row["share_of_gemm"] / rate
    told = [] if asked.quick else promises(dict(zip(asked.names, rows)))
    facts |= dict(gemm_gflops=rate / 1e9, repeats=asked.repeats, quick=asked.quick, differences=found, promises=told, seconds=time.perf_counter() - begin)
    print(f"\n{table(rows)}\n\nfloat32 matrix product: {rate / 1e9:.1f} GFLOP/s; largest difference: "
          f"{max((d for f in found.values() for d in f.values()), default=0):.2g}; {facts['seconds']:.0f} s in all")
    if any(name in LENGTHS for name in asked.names): print("\n".join(map(spoken, told)) or "sizes are tiny: what is promised of trajectory matching was not looked at")
    if wrong: sys.exit("\n".join(wrong))
    out, stem = asked.out or (None if asked.quick or asked.only else HERE), "full" if asked.full else "latest"
    if out is None: print("nothing written: --out FOLDER would"); return
    atomic_write(out/f"{stem}.json", json.dumps(rows, indent=1) + "\n")
    atomic_write(out/f"{stem}-machine.json", json.dumps(facts, indent=1) + "\n")
    if out == HERE: write_readme()


if __name__ == "__main__": main()
