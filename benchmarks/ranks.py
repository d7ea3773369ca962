"""How much faster are several processes than one, each with one thread? And do they make the same?

`python benchmarks/ranks.py` starts one process and then two (by torchrun), prints a table and writes `ranks.json` beside itself. Exit status 1 if two are not
1.7 times as fast as one where the work is divided, or if the results differ. `--quick` tries everything in tiny sizes, promises nothing, and writes only with --out.
"""
import argparse, json, os, platform, subprocess, sys, tempfile, time
from copy import deepcopy
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent)) # the package of this checkout, installed or not

import torch

from measuring import CLASSES, HERE, SHAPE, machine, pictures
from trustdd.core.distributed import barrier, is_main_process, process_group, world_size
from trustdd.core.experiment import Experiment
from trustdd.core.randomness import stream
from trustdd.core.storage import atomic_write, commit
from trustdd.data.dataset import from_tensors
from trustdd.data.poe import outlier_pool
from trustdd.networks.architectures import from_experiment
from trustdd.networks.batches import training_batches
from trustdd.networks.compute import compiled
from trustdd.networks.training import fit
from trustdd.distillation.gradient_matching import image_side, images_seen, match_side, outlier_side
from trustdd.distillation.starting_images import start

PROMISED = 1.7


# One process of those that are timed --------------------------------------------------------------------------------

def setting(ipc, quick):
    "(experiment, random pictures, outlier pool, network) of the paper's size, or tiny."
    small = dict(width=16, batch_real=16, iterations=2, inner=2) if quick else {}
    exp = Experiment(dataset="random-pictures", method="dsa", outliers="poe", ipc=ipc, preset="paper", **small)
    n = CLASSES * exp.batch_real * 5 // 4
    parts = [pictures(count, 4, part) for part, count in (("train", n), ("test", 40))]
    data = from_tensors(exp.dataset, parts[0], torch.arange(n) % CLASSES, parts[1], torch.arange(40) % CLASSES, range(CLASSES))
    return exp, data, outlier_pool(exp, data), from_experiment(exp, SHAPE, CLASSES, stream(exp.seed, "network", 0))


def works(ipc, quick):
    "name -> a function that does the work once and gives its result: an outer step; and for several images per class an epoch of training between two of them."
    exp, data, pool, net = setting(ipc, quick)
    begin, fast = start(exp, data, pool), compiled(net, SHAPE, images_seen(exp, CLASSES))
    weights = deepcopy(net.state_dict())

    def outer():
        state = deepcopy(begin)
        for side in (image_side(exp, data, state), outlier_side(exp, pool, state)):
            match_side(exp, side, net, fast, 0, 0)
        return torch.cat([state.images - begin.images, state.outliers - begin.outliers])

    def epoch():
        net.load_state_dict(weights)
        labels = torch.arange(CLASSES).repeat_interleave(exp.ipc)
        def batches(epoch):
            return training_batches(begin.images, labels, begin.outliers, stream(0, "epoch"), exp, exp.batch_net)
        fit(fast, torch.optim.SGD(net.parameters(), lr=exp.lr_net), batches, 1, exp.lam)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    size_said = f"IPC {ipc}, width {exp.width}"
    made = {f"outer step: {CLASSES} classes and {CLASSES} outlier slots, batch {exp.batch_real}, {size_said}": outer}
    return made | ({f"training: one epoch on {CLASSES * ipc} images and {CLASSES * exp.outliers_per_slot} outliers, {size_said}": epoch} if exp.inner and exp.outer > 1 else {})


def seconds(work, repeats):
    "(best time from the moment all begin until all are done, result)."
    result, best = work(), float("inf")
    for _ in range(repeats):
        barrier(); began = time.perf_counter()
        result = work()
        barrier(); best = min(best, time.perf_counter() - began)
    return best, result


def worker(file, quick, repeats):
    "Time everything, as one of the processes that were started; the first writes times and results."
    torch.set_num_threads(1)
    with process_group():
        found = {name: seconds(work, repeats) for ipc in (1, 10) for name, work in works(ipc, quick).items()}
        if is_main_process(): torch.save(dict(size=world_size(), found=found), file)


# All of it ----------------------------------------------------------------------------------------------------------

def launched(processes, folder, args):
    "What `processes` processes found."
    file = Path(folder)/f"{processes}.pt"
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = [__file__, "--worker", str(file), "--repeats", str(args.repeats), *["--quick"] * args.quick]
    subprocess.run([sys.executable, *how, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    found = torch.load(file, weights_only=True)
    assert found["size"] == processes
    return found["found"]


def table(one, many, exp):
    "One row for each work, and one for a whole iteration as the experiment would do it."
    rows = [dict(name=name, one_s=one[name][0], many_s=many[name][0], promised=PROMISED if name.startswith("outer") else None,
                 difference=float((one[name][1] - many[name][1]).abs().max() / one[name][1].abs().max())) for name in one]
    step, epoch = rows[-2:]
    whole = lambda key: exp.outer * step[key] + (exp.outer - 1) * exp.inner * epoch[key]
    name = f"an iteration of these: {exp.outer} outer steps, {exp.inner} epochs after all but the last (reckoned)"
    rows.append(dict(name=name, one_s=whole("one_s"), many_s=whole("many_s"), promised=None, difference=None))
    return [dict(r, ratio=r["one_s"] / r["many_s"]) for r in rows]


def circumstances(args):
    "Where and with what it was measured."
    return dict(date=time.strftime("%Y-%m-%d"), commit=commit(), machine=machine(torch.device("cpu")), torch=torch.__version__, python=platform.python_version(),
                processes=args.processes, threads_each=1, repeats=args.repeats, quick=args.quick)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and agree?")
    p.add_argument("--processes", type=int, default=2, help="how many against one; 2")
    p.add_argument("--repeats", type=int, default=3, help="times of which the best counts; 3")
    p.add_argument("--out", metavar="FOLDER", help="where ranks.json is written; beside this file, with --quick nowhere")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker: return worker(args.worker, args.quick, args.repeats)
    with tempfile.TemporaryDirectory() as folder: one, many = (launched(n, folder, args) for n in (1, args.processes))
    rows = table(one, many, setting(10, args.quick)[0])
    for r in rows: print(f"{r['one_s']:9.3f} s  {r['many_s']:9.3f} s  {r['ratio']:5.2f}  {'' if r['difference'] is None else format(r['difference'], '.0e'):>6}  {r['name']}")
    if args.out or not args.quick: atomic_write(Path(args.out or HERE)/"ranks.json", json.dumps(dict(machine=circumstances(args), rows=rows), indent=1) + "\n")
    wrong = [f"results differ: {r['name']}" for r in rows if r["difference"]]
    if not args.quick and args.processes == 2: wrong += [f"{r['ratio']:.2f} is below {r['promised']}: {r['name']}" for r in rows if r["promised"] and r["ratio"] < r["promised"]]
    print(*wrong, sep="\n", end="\n" * bool(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__": sys.exit(main())
