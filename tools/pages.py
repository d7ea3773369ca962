"""The parts of the pages in docs/ that are made, not written: between `<!-- made: WORDS -->` and `<!-- end -->`.

The first of WORDS names one of the `MAKERS` below, the others are its arguments. `tools/readme.py` fills all of them."""
import json
import re
import subprocess
from pathlib import Path

from count import ROOMS

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- made: ([^\n]+?) -->\n).*?(<!-- end -->)", re.S)


# --- chapters, presets and commands: made from notebooks and code

def chapter(path):
    "A row of a table of chapters: number and title as a link, and the chapter's summary."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    title, summary = (re.search(rf"^{mark} (.+)$", text, re.M) for mark in "#>")
    number = re.match(r"\d*", path.name)[0]
    words = f"{number} {title[1] if title else path.stem}".strip()
    place = path.relative_to(ROOT).as_posix()
    about = summary[1].replace("|", "\\|") if summary else ""
    return f"| [{words}](../{place}) | {about} |"


def chapter_table(folder):
    "All notebooks of a folder."
    rows = [chapter(p) for p in sorted((ROOT/folder).glob("[!.]*.ipynb"))]
    return "\n".join(["| chapter | what it is about |", "|---|---|", *rows])


def chapters():
    "A table for each room, with the room's purpose from docs/architecture.md."
    text = (ROOT/"docs"/"architecture.md").read_text(encoding="utf-8")
    purpose = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.M))
    parts = [f"## {room.capitalize()}\n\nThis room {purpose[room]}.\n\n{chapter_table(f'nbs/{room}')}"
             for room in ROOMS]
    return "\n\n".join(parts)


WHAT_FOR = {
    "smoke": "proving that everything runs; its numbers mean nothing",
    "quick": "all figures and tables but Figure 9 and Table 6, on a laptop; the default",
    "cifar": "real images on a CPU",
    "long": "as `cifar`, distilled for longer",
    "paper": "the paper's numbers; needs a GPU for more than one image per class",
}


def presets():
    "What each preset means, from the experiments themselves."
    from trustdd.core.deadline import duration
    from trustdd.core.experiment import PRESETS, Experiment
    from trustdd.reproduction.items import SCOPE
    def took(preset, method):
        row = next((r for r in measured["rows"] if (r["preset"], r["method"]) == (preset, method)), None)
        if not row: return "–"
        words = duration(row["seconds"], rough=True) if row["seconds"] >= 1 else "under 1 s"
        return words + (f" (IPC {row['ipc']})" if method != "mtt" and row["ipc"] != 10 else "")
    measured = stored("presets")
    where = measured["machine"]
    lines = ["| preset | data | IPC in tables | seeds | network | gradient matching, IPC 10: iterations × outer × inner "
             "| MTT, IPC 1: experts × epochs | MTT, IPC 1: iterations × steps "
             "| evaluation: networks × epochs | one run with POE: DSA, IPC 10 | MTT, IPC 1 | for |", f"|{'---|' * 12}"]
    for preset in PRESETS:
        exp, mtt = Experiment(preset=preset), Experiment(preset=preset, method="mtt", ipc=1)
        ipcs, seeds = (", ".join(map(str, SCOPE[preset][k])) for k in ("ipcs", "seeds"))
        cells = (f"`{preset}`", exp.dataset, ipcs, seeds, f"width {exp.width}, depth {exp.depth}",
                 f"{exp.iterations} × {exp.outer} × {exp.inner}",
                 f"{mtt.experts} × {mtt.train_epochs}", f"{mtt.iterations} × {mtt.syn_steps}",
                 f"{exp.n_nets} × {exp.epochs}", took(preset, "dsa"), took(preset, "mtt"), WHAT_FOR.get(preset, ""))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"The times are those of `trustdd run --dry-run` on {where['machine']} ({where['threads']} threads, commit "
              f"{where['commit']}), from nothing, experts included: `python benchmarks/presets.py`."]
    return "\n".join(lines)


def commands():
    "Every command and what it says it does."
    from trustdd.reproduction.cli import _COMMANDS
    rows = [f"| `trustdd {name}` | {command.__doc__} |" for name, command in _COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows])


# --- results: made from figures/ and benchmarks/

def figures(preset, *names):
    "Figures and tables under their titles, with captions, claims and verdicts."
    from trustdd.reproduction import gallery
    titles, parts = gallery.notebooks(), []
    for entry in gallery.entries(ROOT/"figures"/preset):
        if entry.name not in names: continue
        name, (notebook, title) = entry.name, titles[entry.name]
        body = f"![{entry.name}](../figures/{preset}/{entry.name}.png)"
        if entry.file("md").exists():
            lines = entry.file("md").read_text(encoding="utf-8").splitlines()
            body = "\n".join(line for line in lines if line.startswith("|"))
        made = f"figures/{preset}/notebooks/{name}.ipynb" # with its outputs, where it is kept
        place = made if (ROOT/made).exists() else f"nbs/paper/{notebook.name}"
        parts.append(f"### [{title}](../{place})\n\n{body}\n\n{entry.facts['caption']}\n\n"
                     f"**Claim.** {entry.facts['claim']}\n\n*{entry.facts['verdict']}*{tests(entry.facts)}")
    return "\n\n".join(parts)


def tests(facts):
    "What a verdict rests on, to unfold; nothing if it compares nothing."
    from trustdd.reproduction.tables import to_markdown
    if not facts.get("tests"): return ""
    return f"\n\n<details><summary>What was compared</summary>\n\n{to_markdown(facts['tests'])}\n</details>"


def claims(*presets):
    "How each claim came out in each preset."
    from trustdd.reproduction import gallery
    found = {p: {e.name: e for e in gallery.entries(ROOT/"figures"/p)} for p in presets}
    counts = [f"`{p}`: {gallery.tally_text(gallery.tally(f.values()))}, of {len(f)}."
              for p, f in found.items()]
    def verdict(preset, name):
        entry = found[preset].get(name)
        if entry is None: return "–"
        kind = "md" if name.startswith("tab") else "png"
        older = preset == "cifar" and "tinyimagenet" in entry.facts["ood_sets"]
        said = gallery.VERDICT_WORDS[entry.held] + " (0.1)" * older
        return f"[{said}](../figures/{preset}/{name}.{kind})"
    lines = [f"| | {' | '.join(f'`{p}`' for p in presets)} |", f"|---|{'---|' * len(presets)}"]
    lines += [f"| [{title}](../nbs/paper/{at.name}) | {' | '.join(verdict(p, n) for p in presets)} |"
              for n, (at, title) in gallery.notebooks().items()]
    return "\n".join([" ".join(counts), "", *lines])


def stored(name):
    return json.loads((ROOT/"benchmarks"/f"{name}.json").read_text(encoding="utf-8"))


def number(value, form):
    return "" if value is None else format(value, form)


def speed(name="latest"):
    "A benchmark's table, and where it was measured."
    rows, machine = stored(name), stored(f"{name}-machine")
    lines = ["| | here, s | plain, s | ratio | share of the matrix-product rate |", "|---|---|---|---|---|"]
    lines += [f"| {r['name']} | {r['ours_s']:.3g} | {r['plain_s']:.3g} | {r['ratio']:.2f} "
              f"| {number(r['share_of_gemm'], '.0%')} |" for r in rows if r["plain_s"]]
    lines += ["", f"Measured on {machine['machine']}, {machine['device']}, {machine['threads']} threads, "
                  f"torch {machine['torch']}, commit {machine['commit']}."]
    return "\n".join(lines)


def memory():
    "The most memory that each stage takes."
    lines = ["| most memory, beyond Python and its imports | MB | limit, MB |", "|---|---|---|"]
    lines += [f"| {r['name'].partition(': ')[2]} | {number(r['mb'], '.0f')} | {r['limit_mb']} |"
              for r in stored("latest") if "limit_mb" in r]
    return "\n".join(lines)


def precision(preset):
    "Published runs in bfloat16 beside the same runs in float32, where both are there."
    from dataclasses import replace
    from trustdd.evaluation.bootstrap import paired_difference, signed
    from trustdd.core.experiment import run_name
    from trustdd.reproduction.run_store import Run, stored_experiment
    lines = ["| | accuracy, float32 | bfloat16 | difference | mean AUROC, float32 | bfloat16 | difference |",
             "|---|---|---|---|---|---|---|"]
    for config in sorted((ROOT/"published"/preset).rglob("config.json")):
        exp = stored_experiment(config.parent)
        if exp.precision == "float32": continue
        other = replace(exp, precision="float32")
        ours, twin = Run(exp, config.parent), Run(other, ROOT/"published"/run_name(other))
        if not (twin.folder/"report.json").exists(): continue # a run that is only there in bfloat16
        cells = [f"{exp.dataset}, {exp.method}, outliers {exp.outliers}, IPC {exp.ipc}, seed {exp.seed}"]
        for statistic in ("accuracy", "mean_auroc"):
            reports = (twin.report, ours.report)
            means = [r.accuracy_mean if statistic == "accuracy" else r.mean_auroc()[0] for r in reports]
            found = paired_difference([ours], [twin], statistic)
            cells += [*(f"{m:.1f}" for m in means), f"{signed(found.mean)} ({found.interval})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds(preset):
    "Each stored seed of DSA on CIFAR-10, one image per class: without outliers, POE as drawn and distilled."
    from trustdd.core.experiment import Experiment, run_name
    from trustdd.evaluation.bootstrap import paired_difference, signed
    from trustdd.reproduction.run_store import Run
    kinds = (dict(), dict(outliers="poe", distill_outliers=False), dict(outliers="poe"))
    def stored_run(seed, kind):
        exp = Experiment(preset=preset, dataset="cifar10", method="dsa", ipc=1, seed=seed, **kind)
        folder = ROOT/"published"/run_name(exp)
        return Run(exp, folder) if (folder/"report.json").exists() else None
    found = {seed: [stored_run(seed, kind) for kind in kinds] for seed in range(3)}
    found = {seed: runs for seed, runs in found.items() if all(runs)}
    none, drawn, distilled = zip(*found.values())
    def gain(a, b):
        of = paired_difference(list(a), list(b), "mean_auroc")
        return f"{signed(of.mean)} ({of.interval})"
    lines = ["| seed | accuracy: DD, POE as drawn, distilled | mean AUROC: DD, as drawn, distilled | on MNIST | distilled over DD | distilled over as drawn |",
             "|---|---|---|---|---|---|"]
    for seed, runs in found.items():
        mnist = [r.report.ood.query("ood == 'mnist' and score == 'msp' and metric == 'auroc'")["mean"].item() for r in runs]
        values = ([r.report.accuracy_mean for r in runs], [r.report.mean_auroc()[0] for r in runs], mnist)
        cells = [", ".join(f"{v:.1f}" for v in some) for some in values]
        lines.append(f"| {' | '.join([str(seed), *cells, gain(runs[2:], runs[:1]), gain(runs[2:], runs[1:2])])} |")
    lines.append(f"| all | | | | {gain(distilled, none)} | {gain(distilled, drawn)} |")
    return "\n".join(lines)


def processes():
    "Two processes against one."
    ranks = stored("ranks")
    steps = [r for r in ranks["rows"] if r["promised"]]
    ratios = [r["ratio"] for r in steps]
    same = "the same numbers to the last bit" if not any(r["difference"] for r in steps) else "other numbers"
    return (f"Two processes of one thread each do an outer step of the paper's size {min(ratios):.2f} to "
            f"{max(ratios):.2f} times as fast as one, with {same} (commit {ranks['machine']['commit']}).")


def atlas():
    "How long all figures and tables take."
    full = [r for r in stored("atlas") if not r["only"]][-1]
    return (f"All {full['items']} figures and tables of `{full['preset']}` took {full['seconds'] / 60:.1f} "
            f"minutes from nothing on {full['machine']} (commit {full['commit']}).")


def own_images():
    "The last lines of a run on a folder of images."
    return f"```\n{(ROOT/'docs'/'own-images.txt').read_text(encoding='utf-8').strip()}\n```"


SOURCES = dict(chapters=chapters, notebooks=chapter_table, commands=commands)
RESULTS = dict(figures=figures, claims=claims, presets=presets, speed=speed, memory=memory, precision=precision, seeds=seeds,
               processes=processes, atlas=atlas, own_images=own_images)
MAKERS = SOURCES | RESULTS


# --- pages

def results_changed():
    "Do figures or measurements differ from the commit, as after `make paper` on another kind of processor?"
    words = ["git", "status", "--porcelain", "--", "figures", "benchmarks"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return bool(done.returncode or done.stdout)


def filled(text, makers):
    "The page with those parts made anew that the makers know."
    def fill(block):
        name, *arguments = block[2].split()
        if name not in MAKERS: raise SystemExit(f"made: {name} in docs/; choose one of: {', '.join(MAKERS)}")
        return f"{block[1]}{makers[name](*arguments)}\n{block[3]}" if name in makers else block[0]
    return BLOCK.sub(fill, text)


def pages(makers=MAKERS):
    "Path → bytes of every page that has such a part."
    texts = {p: p.read_text(encoding="utf-8") for p in sorted((ROOT/"docs").glob("*.md"))}
    return {p.relative_to(ROOT).as_posix(): filled(text, makers).encode()
            for p, text in texts.items() if BLOCK.search(text)}


def broken_links():
    "Links of the pages to files that are not there."
    for page in sorted((ROOT/"docs").glob("*.md")):
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)\s#]+)", prose):
            if not re.match(r"[a-z+]+:", target) and not (page.parent/target).exists():
                yield f"{page.relative_to(ROOT)}: links to {target}, which does not exist"
