"""What outliers gain on each OOD set, at two scales, as docs/gains.png: python tools/draw_gains.py [--out FOLDER]

From Table 1 of `paper` and of `cifar`. A point is the difference in AUROC from networks without outliers, a bar
its 95% interval; hollow points are kin to their outliers. Run it after these tables were drawn again.
"""
import argparse
import hashlib
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PANELS = {("paper", 1): "paper's scale, 1 image per class", ("cifar", 10): "preset cifar, 10 images per class"}
ORDER = ("cifar100", "tinyimagenet-test-no-cifar10", "textures", "places365", "lsun", "mnist", "notmnist")
NAMES = dict(zip(ORDER, ("CIFAR-100 (near)", "TinyImageNet (near)", "Textures", "Places", "LSUN", "MNIST", "notMNIST")))


def gains(preset, ipc):
    "Of each OOD set and kind of outliers: gain in AUROC over no outliers, its interval, and whether it is kin."
    table = pd.read_csv(ROOT/"figures"/preset/"tab01.csv").query("metric == 'auroc' and ipc == @ipc")
    usual = table[table.outliers == "none"].set_index("ood")["mean"]
    table = table[(table.outliers != "none") & table.ood.isin(ORDER)]
    return table.assign(gain=table["mean"] - table.ood.map(usual))[["ood", "outliers", "gain", "low", "high", "kin"]]


def digest():
    "Of all numbers in the picture, which keeps it: is it of today's tables?"
    return hashlib.sha256("".join(gains(*asked).to_csv() for asked in PANELS).encode()).hexdigest()[:16]


def picture():
    "Both panels."
    import matplotlib.pyplot as plt
    from trustdd.reproduction.figures import label, series_style
    fig, panels = plt.subplots(1, len(PANELS), figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained")
    for ax, (asked, title) in zip(panels, PANELS.items()):
        for shift, (kind, rows) in zip((-.12, .12), gains(*asked).groupby("outliers")):
            colour = series_style(kind)["color"]
            for row in rows.itertuples():
                y = ORDER.index(row.ood) + shift
                ax.plot([row.low, row.high], [y, y], color=colour, lw=1.5)
                ax.plot(row.gain, y, "o", color=colour, mfc="white" if row.kin else None, ms=5)
            ax.plot([], [], "o-", color=colour, ms=5, label=label(kind))
        ax.axvline(0, color="grey", lw=0.8)
        ax.set(title=title, xlabel="change of AUROC (points)")
        ax.title.set_size(9)
    panels[0].set_yticks(range(len(ORDER)), [NAMES[name] for name in ORDER])
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8)
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT/"docs")
    picture().savefig(parser.parse_args().out/"gains.png", dpi=100,
                        metadata={"Software": None, "Source": digest()})


if __name__ == "__main__": main()
