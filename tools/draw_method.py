"""The method in one picture, docs/method.png, with digits distilled anew: python tools/draw_method.py [--out FOLDER]"""
import argparse
from pathlib import Path

import torch

import trustdd
from trustdd.evaluation.logits import predict
from trustdd.evaluation.scores import msp
from trustdd.evaluation.thresholds import score_threshold

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 9.0, 3.3 # inches
REAL, DISTILLED, NETWORK, ANSWER = 0.01, 0.33, 0.66, 0.87 # left ends
UPPER, LOWER, SIDE = 0.54, 0.03, 0.36                     # lower ends of the rows; height of a block


def tiles(fig, images, left, low, title, columns=6):
    "A block of images (n, 1, H, W) in [0, 1] with a border between them."
    padded = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    rows = [torch.cat(list(row[:, 0]), 1) for row in padded.split(columns)]
    ax = fig.add_axes([left, low, 0.2, SIDE])
    ax.imshow(torch.cat(rows), cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, size=8, pad=4)
    ax.axis("off")


def arrow(fig, start, end, text, above=0.03):
    "From one place to another, with a word at its middle."
    from matplotlib.patches import FancyArrowPatch
    fig.add_artist(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#444", lw=1.2))
    fig.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, text, size=7.5, ha="center", va="bottom")


def answers(digits, syn):
    "The digit and the texture of median score, each with what a network says, or unknown below its threshold."
    net = trustdd.train(syn, n_nets=1, progress=False)[0]
    half = len(digits.test_images) // 2
    lowest = score_threshold(msp(predict(net, digits.test_images[:half], digits)), accept=0.95)
    sets = digits.test_images[half:], trustdd.load_ood("skimage-textures", digits.shape)
    middle = [msp(predict(net, x, digits)).argsort()[len(x) // 2] for x in sets]
    shown = torch.stack([x[i] for x, i in zip(sets, middle)])
    logits = predict(net, shown, digits)
    said = [digits.classes[k] if score >= lowest else "unknown" for k, score in zip(logits.argmax(1), msp(logits))]
    return shown.float() / 255, said


def picture():
    "Real digits and corrupted ones, what is distilled from each, a network, and its two answers."
    from matplotlib.patches import FancyBboxPatch
    import matplotlib.pyplot as plt
    digits = trustdd.load_dataset("digits")
    syn = trustdd.distill(trustdd.Experiment(dataset="digits", method="dsa", outliers="poe", ipc=10), progress=False)
    real = torch.cat([digits.images[digits.of_class(c)[:2]] for c in range(9)]).float() / 255
    generator = torch.Generator().manual_seed(0)
    kinds = ("jigsaw", "invert", "mosaic")
    corrupted = torch.cat([trustdd.corrupt(kind, real[6 * i:6 * i + 6], generator) for i, kind in enumerate(kinds)])
    fig = plt.figure(figsize=(WIDTH, HEIGHT))
    tiles(fig, real, REAL, UPPER, "real images: 1,000")
    tiles(fig, corrupted, REAL, LOWER, "the same, corrupted")
    shown = digits.denormalise(syn.images[[10 * c + i for c in range(9) for i in range(2)]])
    tiles(fig, shown, DISTILLED, UPPER, f"distilled images: {len(syn.images)}")
    groups = [10 * slot + i for slot in range(3) for i in range(6)] # jigsaw, invert and mosaic
    tiles(fig, digits.denormalise(syn.outliers[groups]), DISTILLED, LOWER, f"distilled outliers: {len(syn.outliers)}")
    for low in (UPPER, LOWER):
        middle = low + SIDE / 2
        arrow(fig, (REAL + 0.205, middle), (DISTILLED - 0.005, middle), "match\ngradients")
    arrow(fig, (DISTILLED + 0.205, UPPER + SIDE / 2), (NETWORK - 0.005, 0.55), "“answer\nthe class”", 0.06)
    arrow(fig, (DISTILLED + 0.205, LOWER + SIDE / 2), (NETWORK - 0.005, 0.42), "“all classes\nalike”", -0.2)
    fig.add_artist(FancyBboxPatch((NETWORK + 0.01, 0.4), 0.09, 0.17, boxstyle="round,pad=0.01", fc="#fdf0d5", ec="#444"))
    fig.text(NETWORK + 0.055, 0.485, "network", size=9, ha="center", va="center")
    shown, said = answers(digits, syn)
    for image, answer, low in zip(shown, said, (0.64, 0.12)):
        ax = fig.add_axes([ANSWER, low, 0.08, 0.22])
        ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        ax.axis("off")
        ax.set_title(f"“{answer}”", size=9, pad=4)
        arrow(fig, (NETWORK + 0.115, 0.485), (ANSWER - 0.01, low + 0.11), "")
    return fig


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT/"docs")
    picture().savefig(parser.parse_args().out/"method.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__": main()
