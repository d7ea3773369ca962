"""What every line of the benchmark needs: pictures, clocks, memory, fresh processes, the table, and the files of results."""
import json, os, platform, sys, time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timezone
from pathlib import Path

import torch
from PIL import Image

import history
from trustdd.core.randomness import stream
from trustdd.core.storage import atomic_write, commit, data_root
from trustdd.networks.compute import copying, flops

HERE, SHAPE, CLASSES = Path(__file__).resolve().parent, (3, 32, 32), 10


# What is looked at ----------------------------------------------------------------------------------------------------

def pictures(n, grain, *key):
    "Random colour images, uint8, of squares of `grain` pixels."
    x = torch.randint(256, (n, SHAPE[0], SHAPE[1] // grain, SHAPE[2] // grain), generator=stream(0, "bench", *key), dtype=torch.uint8)
    return x.repeat_interleave(grain, 2).repeat_interleave(grain, 3)


def write_tree(folder, n):
    "Class folders of `n` training and `n`/4 test images, lossless webp."
    for part, count in (("train", n), ("test", n // 4)):
        for i, image in enumerate(pictures(count, 2, part)):
            at = folder/part/f"class{i % CLASSES}"
            at.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(at/f"{i:05}.webp", lossless=True)


def has_cifar10():
    "Is CIFAR-10 there as a folder of images?"
    return all((data_root()/"cifar10"/part).is_dir() for part in ("train", "test"))


def work_of(net, images, backward=True):
    "Certain operations for so many images: forward, or forward and backward without the first layer's input gradient."
    forward = flops(net, SHAPE)
    return images * (3 * forward - flops(net.body[0], SHAPE) if backward else forward)


# Clock and memory -----------------------------------------------------------------------------------------------------

def settle(device):
    "Wait until everything on the device is done."
    if device.type == "cuda": torch.cuda.synchronize(device)


def timed(work, device):
    "(seconds, what `work()` returns), with everything on the device done."
    settle(device); begin = time.perf_counter()
    made = work()
    settle(device)
    return time.perf_counter() - begin, made


def tf32(on):
    "On a GPU: may matrix products and convolutions round their inputs to TF32, on both sides?"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    os.environ["TRUSTDD_PRECISION"] = "tf32" if on else "highest" # what the package asks for itself


def gemm_rate(device, n=None, repeats=8):
    "Floating-point operations per second of a float32 matrix product of side `n` (2048, on a GPU 8192), the best of several."
    n = n or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.rand(n, n, device=device) for _ in range(2))
    torch.mm(a, b)
    return 2 * n**3 / min(timed(lambda: torch.mm(a, b), device)[0] for _ in range(repeats))


def differences(allowed, ours, plainly):
    "What -> largest difference over largest value; infinite where shapes differ."
    def one(a, b): return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.shape == b.shape else float("inf")
    return {what: one(ours[what].double(), plainly[what].double()) for what in allowed}


def too_different(name, allowed, found, sides="ours and plain"):
    "A line for each difference that is not allowed."
    return [f"{name}: {sides} differ in the {what} by {found[what]:.2g}, allowed is {limit:.2g}"
            for what, limit in allowed.items() if what in found and not found[what] <= limit]


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


def another_process():
    "An executor with a process of its own, which starts with the first call and has done nothing else but import torch; where that is possible, it is a copy of one that has."
    context = copying()
    context.set_forkserver_preload(["torch"]) # what else is imported counts as memory of the work that needs it
    return ProcessPoolExecutor(1, mp_context=context)


def alone(name, work, *args):
    "What `work(*args)` returns in a process that has done nothing else."
    try:
        with another_process() as fresh: return fresh.submit(work, *args).result()
    except BrokenProcessPool: sys.exit(f"{name}: its process was killed; memory is likely to have run out")


def first_to_go():
    "Should memory run out after all: this process first."
    if os.path.exists("/proc/self/oom_score_adj"): Path("/proc/self/oom_score_adj").write_text("1000")


# What it is measured on, and how it is shown --------------------------------------------------------------------------

def machine(device):
    "What the numbers were measured on, in words."
    if device.type == "cuda": return torch.cuda.get_device_name(device)
    try: model = next(l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name"))
    except (OSError, StopIteration): model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} CPUs"


def surroundings(device):
    "When, where and with what is measured."
    return dict(date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), machine=machine(device), device=str(device), threads=torch.get_num_threads(),
                torch=torch.__version__, python=platform.python_version(), commit=commit())


def cell(value, form): return "" if value is None else format(value, form)


HEAD = ["", "ours, s", "plain, s", "ratio", "of gemm", "compile, s", "ours, MB", "plain, MB", "limit, MB"]


def columns(r):
    "The row as texts; what was not measured is blank."
    plain_mb = f"does not fit: {r['plain_needs_mb']:.0f}" if "plain_needs_mb" in r else cell(r.get("plain_mb"), ".0f")
    return [r["name"], cell(r["ours_s"], ".4g"), cell(r["plain_s"], ".4g"), cell(r["ratio"], ".2f"), cell(r["share_of_gemm"], ".0%"),
            cell(r["compile_s"], ".1f"), cell(r.get("ours_mb", r.get("mb")), ".0f"), plain_mb, cell(r.get("limit_mb"), ".0f")]


def shown(rows):
    "Heads and rows as texts, without the columns in which nothing stands."
    lines = [HEAD, *map(columns, rows)]
    kept = [i for i in range(len(HEAD)) if any(line[i] for line in lines[1:])] if rows else range(len(HEAD))
    return [[line[i] for i in kept] for line in lines]


def table(rows):
    "The rows as text."
    lines = shown(rows)
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip() for line in lines)


def store(out, stem, rows, facts, remember=True):
    "Write the rows and what they were measured on, and unless there is more to come append both to the history."
    atomic_write(out/f"{stem}.json", json.dumps(rows, indent=1) + "\n")
    atomic_write(out/f"{stem}-machine.json", json.dumps(facts, indent=1) + "\n")
    if remember: history.append(out/history.FILE, stem, rows, facts)
