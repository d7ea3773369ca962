"""Results over time: a run appends its rows to history.jsonl, and history.png shows what has become of each line."""
import json
from pathlib import Path

from trustdd.core.storage import atomic_write

FILE, PICTURE = "history.jsonl", "history.png"
WHERE = ("date", "commit", "machine", "device", "threads", "torch", "python", "gemm_gflops")


def append(path, stem, rows, facts):
    "A line for each row: when, where and with what it was measured, which file it stands in, and the row."
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    where = {k: facts.get(k) for k in WHERE} | {"results": stem}
    atomic_write(path, before + "".join(json.dumps(where | row) + "\n" for row in rows))


def read(path):
    "All rows there are, in the order of their dates."
    return sorted((json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()), key=lambda e: e["date"]) if path.exists() else []


def short(row): return row["name"].split(":")[0]


def picture(entries) -> bytes:
    "A PNG with a panel for each line of the benchmark: ours and plain over the runs, the share of the matrix product in grey behind."
    from trustdd.reproduction.figures import FULL, render, subplots
    names, runs = list(dict.fromkeys(map(short, entries))), list(dict.fromkeys((e["date"], e["commit"]) for e in entries))
    n_cols = 4
    fig, axes = subplots(-(-len(names) // n_cols), n_cols, FULL, 1.15, sharex=True)
    for ax in axes.flat[len(names):]: ax.remove()
    for ax, name in zip(axes.flat, names): _panel(ax, name, [e for e in entries if short(e) == name], runs)
    for ax in axes.flat[max(len(names) - n_cols, 0):len(names)]: ax.xaxis.set_tick_params(labelbottom=True)
    lines = {text: h for ax in fig.axes for h, text in zip(*ax.get_legend_handles_labels())}
    fig.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines), fontsize=7)
    fig.supxlabel("run, by date and commit", fontsize=7); fig.supylabel("seconds for a unit of work; megabytes in the panels of memory", fontsize=7)
    return render(fig, dpi=100)


def _panel(ax, name, entries, runs):
    "One line of the benchmark, a curve for each machine."
    for i, where in enumerate(dict.fromkeys((e["machine"], e["device"]) for e in entries)):
        here = [e for e in entries if (e["machine"], e["device"]) == where]
        ours, second, label = ("mb", "limit_mb", "limit") if "mb" in here[-1] else ("ours_s", "plain_s", "plain")
        for key, style, text in ((ours, "o-", "ours"), (second, "s:" if label == "limit" else "s--", label)):
            points = [(runs.index((e["date"], e["commit"])), e[key]) for e in here if e.get(key)]
            if points: ax.plot(*zip(*points), style, label=text, color="#0072B2" if text == "ours" else "#D55E00", markersize=3, linewidth=1, alpha=1 if not i else .5)
    _share(ax, entries, runs)
    last = entries[-1]
    said = [form.format(last[key]) for key, form in (("ratio", "{:.2f}×"), ("share_of_gemm", "{:.0%} of gemm"), ("mb", "{:.0f} MB")) if last.get(key)]
    ax.set_title("\n".join((name, ", ".join(said))), fontsize=6)
    values = [v for line in ax.lines for v in line.get_ydata()] or [1]
    low, high = min(values), max(values)
    ax.set_yscale("log"); ax.minorticks_off(); ax.set_ylim(low / 1.5, high * 1.5)
    ax.set_yticks(ticks := [low, high] if high > 1.3 * low else [high], [f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in ticks])
    ax.set_xlim(-.5, len(runs) - .5)
    ax.set_xticks(range(len(runs)), [f"{date[5:10]} {commit[:7]}" for date, commit in runs], rotation=90, fontsize=5)
    ax.tick_params(axis="y", labelsize=5)


def _share(ax, entries, runs):
    "Grey bars from the floor: how much of the panel's height they fill is the share of the matrix product."
    points = [(runs.index((e["date"], e["commit"])), min(e["share_of_gemm"], 1)) for e in entries if e.get("share_of_gemm")]
    if points: ax.bar(*zip(*points), width=.8, color="0.88", zorder=0, transform=ax.get_xaxis_transform(), label="share of gemm (the panel's height is 100%)")
