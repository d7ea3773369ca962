"""Time the package's hot paths against plain versions of the same work, and check that both give the same numbers.

`python benchmarks/bench.py` prints a table and writes `latest.json` and `latest-machine.json` beside itself; README.md says what is measured and how.
"""
import argparse, json, os, re, sys, tempfile, time
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent)) # the package of this checkout, installed or not

import torch

import gpu, history, plain, unchanged
from measuring import CLASSES, HERE, SHAPE, another_process, differences, gemm_rate, has_cifar10, pictures, shown, store, surroundings, table, tf32, timed, too_different, work_of, write_tree
from memory import LIMITS, measure_memory
from trajectories import FULL, LENGTHS, measure_trajectory, promises, spoken
from trustdd.core.checks import check_choice, UserError
from trustdd.core.experiment import Experiment
from trustdd.core.randomness import pick_device, stream
from trustdd.core.storage import atomic_write, data_root
from trustdd.data.augment import draw
from trustdd.data.catalog import _dataset as datasets_in_memory, load_dataset
from trustdd.data.dataset import from_tensors
from trustdd.data.poe import outlier_pool
from trustdd.networks.architectures import from_experiment
from trustdd.networks.batches import training_batches
from trustdd.networks.compute import check_precision, compiled, in_precision, keep_memory
from trustdd.networks.parameters import initialise
from trustdd.networks.training import fit
from trustdd.distillation.gradient_matching import image_side, match_side, outlier_side
from trustdd.distillation.methods import find_method
from trustdd.distillation.starting_images import real_rows, start
from trustdd.evaluation.logits import collect_logits
from trustdd.evaluation.report import report_from_logits
from trustdd.evaluation.scores import METRICS, SCORES


@dataclass(frozen=True)
class Case:
    "One line of the table: the same work, done by the package and plainly."
    name:str            # what is done, with its sizes
    ours:object         # () -> {what: tensor}
    plain:object        # () -> {what: tensor}, the same
    allowed:dict        # what -> the largest difference, relative to the largest value
    work:float=None     # floating-point operations of one call that are certain; None: not about arithmetic
    compiled:object=lambda: False # () -> does the first call of `ours` compile? Asked only where it is called
    per_call:int=1      # how many units, such as epochs, a call does


BESIDE = dict(float32="", bfloat16="-bfloat16") # precision -> what is added to a line's name: ours alone has it, the plain side is float32


# What is measured ---------------------------------------------------------------------------------------------------

def stage(preset, outliers, quick, device, method="dsa"):
    "(experiment, data set, outlier pool, starting state, network) at the preset's sizes, or tiny ones."
    exp = Experiment(dataset="random-pictures", method=method, outliers=outliers, ipc=10, preset=preset)
    if quick: exp = replace(exp, width=exp.width // 8, batch_real=8)
    if quick: exp = replace(exp, iterations=1) # too little work to compile the step for; paper's training is compiled
    if quick and preset == "cifar" and method != "dm": exp = replace(exp, epochs=1, outer=1, inner=0)
    n = CLASSES * exp.batch_real * 5 // 4
    parts = ((pictures(count, 4, part), torch.arange(count) % CLASSES) for part, count in (("train", n), ("test", 40 if quick else 1000)))
    (images, labels), (test_images, test_labels) = parts
    data = from_tensors(exp.dataset, images, labels, test_images, test_labels, range(CLASSES))
    pool = outlier_pool(exp, data, device=device)
    net = from_experiment(exp, SHAPE, CLASSES, stream(exp.seed, "network", 0), device)
    return exp, data, pool, start(exp, data, pool, device), net


def outer(preset, quick, device, precision="float32", method="dsa"):
    "One matching step, of gradients or (dm) of embeddings: all classes, then all outlier slots, from the start."
    exp, data, pool, begin, net = stage(preset, "poe", quick, device, method)
    matching, plain_step = find_method(method), plain.embedding_step if method == "dm" else plain.outer_step
    compiled_net, twin = cache(lambda: matching.faster(exp, data, net)), deepcopy(net)
    draws = lambda purpose: lambda c: stream(exp.seed, purpose, 0, 0, c)
    whole = data.normalise(data.images, device)
    corrupted = [pool.draw(c, exp.batch_real, draws("outliers")(c)) for c in range(CLASSES)]

    def ours():
        state, fast = deepcopy(begin), in_precision(compiled_net(), precision, device)
        for side in (image_side(exp, data, state), outlier_side(exp, pool, state)):
            match_side(exp, side, net, fast, 0, 0, matching.compare)
        return outcome(state.images, state.outliers)

    def plainly():
        images, outliers = (x.clone().requires_grad_() for x in (begin.images, begin.outliers))
        sides = ((images, "omega", lambda c: whole[real_rows(data, c, exp.batch_real, draws("real")(c))], plain.class_criterion),
                 (outliers, "omega-outliers", lambda c: corrupted[c], lambda c: plain.outlier_criterion))
        for syn, purpose, real, criterion in sides:
            optimizer = torch.optim.SGD([syn], lr=exp.lr_img, momentum=exp.momentum_img)
            plain_step(twin, syn, optimizer, real, lambda c: draw(exp.strategy, 1, draws(purpose)(c)), criterion, exp.align_corners)
        return outcome(images.detach(), outliers.detach())

    def outcome(images, outliers):
        return {"images": images, "outliers": outliers, "step of the images": images - begin.images, "step of the outliers": outliers - begin.outliers}

    name = f"{'dm' if method == 'dm' else 'outer'}-{preset}{BESIDE[precision]}: {CLASSES} classes and {CLASSES} outlier slots, width {exp.width}, batch {exp.batch_real}, IPC {exp.ipc}"
    allowed = {"images": 1e-4, "outliers": 1e-4, "step of the images": 2e-2, "step of the outliers": 2e-2}
    # DM's step is the difference of two nearly equal means, and lr_img = 1 puts all of it into the images: at single pixels either side is up to
    # 1.5% of the step, 3e-4 of the images, from the plain loop in float64. A step of gradients is far smaller.
    if method == "dm": allowed |= {"images": 5e-4, "outliers": 5e-4}
    if precision != "float32": allowed = {"images": 1e-2, "outliers": 1e-2, "step of the images": 0.5, "step of the outliers": 0.5}
    work = work_of(net, 2 * CLASSES * (exp.batch_real + exp.ipc))
    if method == "dm": work = work_of(net, 2 * CLASSES * (exp.batch_real + 2 * exp.ipc), backward=False) # real images pass forward only
    return Case(name, ours, plainly, allowed, work, lambda: compiled_net() not in (net, net.body))


def training(preset, outliers, quick, device, precision="float32"):
    "Epochs of a fresh network on a distilled set."
    exp, _, _, syn, net = stage(preset, outliers, quick, device)
    epochs, twin, n = 2 if quick else dict(paper=4, cifar=10)[preset], deepcopy(net), len(syn.images) + len(syn.outliers)
    short = quick and not exp.outliers_per_slot # of the tiny sizes one line is compiled
    compiled_net = cache(lambda: compiled(net, SHAPE, n if short else exp.n_nets * exp.epochs * n))
    labels = torch.arange(CLASSES, device=device).repeat_interleave(exp.ipc)

    def trained(model, one_epoch):
        initialise(model, stream(exp.seed, "evaluation", 0)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=exp.lr_eval, momentum=exp.momentum_eval, weight_decay=exp.weight_decay)
        for epoch in range(epochs): one_epoch(optimizer, stream(exp.seed, "training", 0, epoch))
        return {"weights": torch.cat([p.detach().flatten() for p in model.parameters()])}

    def our_epoch(optimizer, generator):
        def batches(epoch):
            return training_batches(syn.images, labels, syn.outliers, generator, exp, exp.batch_eval)
        fit(in_precision(compiled_net(), precision, device), optimizer, batches, 1, exp.lam)

    order, order_out, steps = [], [], -(-len(syn.images) // exp.batch_eval)
    loader_in = plain.loader(syn.images, labels, order=order, batch=exp.batch_eval)
    loader_out = plain.loader(syn.outliers, order=order_out, batch=-(-len(syn.outliers) // steps)) if len(syn.outliers) else None

    def plain_epoch(optimizer, generator):
        order[:] = torch.randperm(len(syn.images), generator=generator).tolist()
        order_out[:] = torch.randperm(len(syn.outliers), generator=generator).tolist()
        plain.train_epoch(twin, loader_in, loader_out, optimizer, generator, exp)

    tail, beside = ("-outliers", f" and {len(syn.outliers)} outliers") if exp.outliers_per_slot else ("", "")
    name = f"train-{preset}{tail}{BESIDE[precision]}: one epoch on {len(syn.images)} images{beside}, width {exp.width}"
    ours, plainly = partial(trained, net, our_epoch), partial(trained, twin, plain_epoch)
    allowed = {"weights": 1e-3 if precision == "float32" else 5e-2}
    return Case(name, ours, plainly, allowed, work_of(net, epochs * n), lambda: compiled_net() is not net, epochs)


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


def loading(quick, device, scratch):
    "A data set from the folder's cache, as every start but the first finds it, against decoding its images."
    name, root = "cifar10", data_root()
    if quick or not has_cifar10():
        name, root = "pictures", scratch
        if not (root/name).is_dir(): write_tree(root/name, 400 if quick else 4000)

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


CASES = {f"outer-{p}": partial(outer, p) for p in ("paper", "cifar")} | {f"dm-{p}": partial(outer, p, method="dm") for p in ("paper", "cifar")}
CASES |= {f"train-{p}{tail}": partial(training, p, o) for p in ("paper", "cifar") for tail, o in (("", "none"), ("-outliers", "poe"))}
CASES |= {"outer-paper-bfloat16": partial(outer, "paper", precision="bfloat16"), "train-paper-bfloat16": partial(training, "paper", "none", precision="bfloat16")}
CASES |= {f"evaluate-{p}": partial(evaluation, p) for p in ("paper", "cifar")} | {"load": loading}


# How it is measured -------------------------------------------------------------------------------------------------

OURS = {} # in the process of our side: the case at hand

def made_case(name, asked, scratch):
    "The case of a line."
    return CASES[name](asked.quick, asked.device, **({"scratch": scratch} if name == "load" else {}))


def begin_ours(name, asked, scratch, threads):
    "In the process of our side, where freed memory is kept as in every run of the package: (seconds of a first call, did it compile?)."
    torch.set_num_threads(threads)
    tf32(False)
    keep_memory()
    torch.compiler.reset()
    OURS["case"] = made_case(name, asked, scratch)
    compiles = OURS["case"].compiled()
    return timed(OURS["case"].ours, asked.device)[0], compiles


def again_ours(device):
    "In the process of our side: seconds, and what was made, as arrays."
    seconds, made = timed(OURS["case"].ours, device)
    return seconds, {what: x.cpu().numpy() for what, x in made.items()}


def measure(name, asked, scratch, beside):
    "(row with operations per second for its share, differences, those not allowed): one call of ours first, in its process `beside`, then both sides in turn, the best of `repeats`."
    case, device = made_case(name, asked, scratch), asked.device
    print(f"    {case.name}", flush=True)
    (first, compiles), times = beside.submit(begin_ours, name, asked, scratch, torch.get_num_threads()).result(), []
    if compiles: print(f"    compiled, first call {first:.4g} s", flush=True)
    for i in range(asked.repeats):
        (a, made), (b, made_plainly) = beside.submit(again_ours, device).result(), timed(case.plain, device)
        times.append((a, b))
        print(f"    ours {a / case.per_call:.4g} s, plain {b / case.per_call:.4g} s", flush=True)
    found = differences(case.allowed, {what: torch.from_numpy(x).to(device) for what, x in made.items()}, made_plainly)
    print(f"    largest difference {max(found.values()):.2g} ({max(found, key=found.get)})", flush=True)
    best, best_plain = (min(t) for t in zip(*times))
    row = dict(name=case.name, ours_s=best / case.per_call, plain_s=best_plain / case.per_call, ratio=best_plain / best,
               share_of_gemm=case.work and case.work / best, compile_s=max(0.0, first - best) if compiles else None)
    return row, found, too_different(case.name, case.allowed, found)


def markdown(lines):
    "Rows of texts as a table, the first its head."
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def ranks_said(kept):
    "What ranks.json says, as texts: of two processes against one."
    about = kept["machine"]
    lines = [["", "one, s", f"{about['processes']}, s", "ratio", "promised", "difference"]]
    lines += [[r["name"], f"{r['one_s']:.4g}", f"{r['many_s']:.4g}", f"{r['ratio']:.2f}", f"{r['promised']}" if r["promised"] else "", "" if r["difference"] is None else f"{r['difference']:.1g}"] for r in kept["rows"]]
    return [markdown(lines), f"`ranks.json`: {about['processes']} processes against one, {about['threads_each']} thread each: {about['machine']}, torch {about['torch']}, commit {about['commit']}, {about['date']}."]


def unchanged_said(kept):
    "What unchanged.json says, as texts: published runs made again."
    where = sorted({f"{r['machine']}, torch {r['torch']}, commit {r['commit']}, {r['date']}" for r in kept})
    then = ", ".join(sorted({c for r in kept for c in r["commits"]}))
    return [markdown(unchanged.table(kept)), f"`unchanged.json`: published runs (of commits {then}) made again by {'; '.join(where)}; in percent, mean ± standard deviation over networks and seeds."]


def atlas_said(kept):
    "What atlas.json says, as texts: how long figures and tables take from nothing."
    lines = [["preset", "items", "commit", "of", "seconds", ".csv the same as in the line above"]]
    lines += [[r["preset"], f"{r['items']}{': ' + r['only'].replace(',', ', ') if r['only'] else ' (all)'}", r["commit"], r["committed"], f"{r['seconds']:.0f}",
               "" if r["same_csv"] is None else f"{r['same_csv']} of {r['items']}"] for r in kept]
    return [markdown(lines), "`atlas.json`: from nothing, after set-up; " + "; ".join(sorted({f"{r['machine']}, torch {r['torch']}, {r['date']}" for r in kept})) + "."]


def write_readme():
    "Put what the stored results say, each with the machine and commit it was measured on, between the marks of README.md."
    parts = []
    for name in ("latest", "full", "gpu"):
        try: rows, facts = (json.loads((HERE/f"{n}.json").read_text(encoding="utf-8")) for n in (name, f"{name}-machine"))
        except FileNotFoundError: continue
        parts.append(markdown(shown(rows)))
        parts.append(f"`{name}.json`: {facts['machine']}, {facts['device']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}, "
                     f"matrix product {facts['gemm_gflops']:.0f} GFLOP/s.")
        parts += ["\n".join(f"- {line}" for line in facts["wrong"])] if facts.get("wrong") else []
        parts += ["\n".join(f"- {spoken(p)}" for p in told)] if (told := [p for p in facts.get("promises", []) if p["held"] is not None]) else []
    for name, said in (("atlas", atlas_said), ("ranks", ranks_said), ("unchanged", unchanged_said)):
        if (HERE/f"{name}.json").exists(): parts += said(json.loads((HERE/f"{name}.json").read_text(encoding="utf-8")))
    if kept := history.read(HERE/history.FILE):
        (HERE/history.PICTURE).write_bytes(history.picture(kept))
        parts.append(f"![Seconds of ours and of the plain side over the runs, a panel for each line, the share of the matrix product in grey]({history.PICTURE})")
    text, n = re.subn(r"(<!-- results[^>]*-->\n).*(<!-- end of results -->)", lambda m: m[1] + "\n\n".join(parts) + "\n" + m[2],
                      (HERE/"README.md").read_text(encoding="utf-8"), flags=re.S)
    if n != 1: sys.exit("benchmarks/README.md must have one line '<!-- results ... -->' and, after it, one '<!-- end of results -->'")
    atomic_write(HERE/"README.md", text)


def arguments():
    parser = argparse.ArgumentParser(description="Time the package's hot paths against plain versions of the same work.")
    parser.add_argument("--only", help=f"some of the lines, by commas: {', '.join([*CASES, *LENGTHS, *LIMITS])}; with --gpu some of its parts: {', '.join(gpu.PARTS)}")
    parser.add_argument("--full", action="store_true", help=f"trajectory matching alone, at {FULL[0]} to {FULL[-1]} steps: minutes, and gigabytes for the plain side")
    parser.add_argument("--gpu", action="store_true", help="what an NVIDIA GPU gives: first whether it computes what the CPU computes, then times at paper size, then what a whole run costs")
    parser.add_argument("--budget", type=float, help="with --gpu: seconds for everything; a whole run is really run if it fits, else extrapolated")
    parser.add_argument("--readme", action="store_true", help="measure nothing; write the stored results into README.md, and draw their history")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run and agree? The times mean nothing")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice if not given")
    parser.add_argument("--device", help="cpu (default), cuda (default with --gpu) or cuda:1")
    parser.add_argument("--repeats", type=int, default=2, help="timings of each side, of which the best counts (default 2)")
    parser.add_argument("--out", type=Path, help="folder for the files; beside this script for a whole or a full run, else nothing is written")
    asked = parser.parse_args()
    try:
        asked.device = gpu.device(asked.device, asked.quick) if asked.gpu else pick_device(asked.device or "cpu")
        if (bool(asked.only) + asked.full > 1) or asked.full and asked.gpu: raise UserError("only, full and gpu: full goes with neither of the others")
        if asked.budget is not None and not asked.gpu: raise UserError("budget is for gpu")
        everything = list(gpu.PARTS) if asked.gpu else list(LENGTHS) if asked.full else [*CASES, f"trajectory-{FULL[0]}", *LIMITS]
        known = everything if asked.gpu else [*CASES, *LENGTHS, *LIMITS]
        asked.names = [check_choice("only", name, known) for name in asked.only.split(",")] if asked.only else everything
        if asked.repeats < 1 or asked.threads is not None and asked.threads < 1: raise UserError("threads and repeats must be 1 or more")
    except gpu.NoGPU as e: print(e, file=sys.stderr); sys.exit(2)
    except UserError as e: parser.error(str(e))
    return asked


def one_line(name, asked, scratch, beside):
    "(row with operations per second for its share, differences, what is wrong) of a line of the table."
    if name in LENGTHS: return measure_trajectory(name, asked)
    if name in LIMITS:
        row, wrong = measure_memory(name, asked, scratch)
        return row, {}, wrong
    if name.endswith(BESIDE["bfloat16"]):
        try: check_precision("bfloat16", asked.device)
        except UserError: return dict.fromkeys(("name", "ours_s", "plain_s", "ratio", "share_of_gemm", "compile_s")) | dict(name=f"{name}: not on this processor"), {}, []
    return measure(name, asked, scratch, beside)


def measured(asked, facts):
    "All lines that were asked for: (rows, what is wrong); `facts` grows."
    side = 256 if asked.quick else None
    rate, rows, found, wrong = gemm_rate(asked.device, side), [], {}, []
    with tempfile.TemporaryDirectory() as scratch, another_process() as beside:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compiled" # so that compile seconds are those of a first time
        for i, name in enumerate(asked.names):
            print(f"[{i + 1}/{len(asked.names)}]", flush=True)
            row, found[name], bad = one_line(name, asked, Path(scratch), beside)
            rows.append(row); wrong += bad
    rate = max(rate, gemm_rate(asked.device, side))
    for row in rows: row["share_of_gemm"] = row["share_of_gemm"] and row["share_of_gemm"] / rate
    told = [] if asked.quick else promises(dict(zip(asked.names, rows)))
    facts |= dict(gemm_gflops=rate / 1e9, repeats=asked.repeats, quick=asked.quick, differences=found, promises=told)
    return rows, wrong


def main():
    asked, begin = arguments(), time.perf_counter()
    if asked.readme: write_readme(); return
    if asked.threads: torch.set_num_threads(asked.threads)
    tf32(False)
    facts = surroundings(asked.device)
    print(*(f"{k}: {v}" for k, v in facts.items()), sep="; ", flush=True)
    out = asked.out or (None if asked.quick or asked.only else HERE)
    if asked.gpu: gpu.run(asked, facts, out)
    else:
        rows, wrong = measured(asked, facts)
        facts["seconds"] = time.perf_counter() - begin
        print(f"\n{table(rows)}\n\nfloat32 matrix product: {facts['gemm_gflops']:.1f} GFLOP/s; largest difference: "
              f"{max((d for f in facts['differences'].values() for d in f.values()), default=0):.2g}; {facts['seconds']:.0f} s in all")
        if any(name in LENGTHS for name in asked.names): print("\n".join(map(spoken, facts["promises"])) or "sizes are tiny: what is promised of trajectory matching was not looked at")
        if wrong: sys.exit("\n".join(wrong))
        if out: store(out, "full" if asked.full else "latest", rows, facts)
    if out is None: print("nothing written: --out FOLDER would")
    elif out == HERE: write_readme()


if __name__ == "__main__": main()
