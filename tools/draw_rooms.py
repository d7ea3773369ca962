"""Draw docs/rooms.svg: the six rooms as lanes, and how data flows through them.

    python tools/draw_rooms.py
"""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LANES = {
    "core": "#e8eaf0", "data": "#e3f0e4", "networks": "#fdf0d5",
    "distillation": "#fbe3df", "evaluation": "#e2edf8", "reproduction": "#efe5f5",
}
# What is handed on: its text, its room, and its column.
STATIONS = {
    "experiment": ("Experiment", "core", 0),
    "dataset": ("Dataset", "data", 1),
    "pool": ("outlier pool", "data", 2),
    "buffers": ("buffers", "distillation", 3),
    "distill": ("distill()", "distillation", 4),
    "set": ("DistilledSet", "data", 5),
    "train": ("train()", "networks", 6),
    "networks": ("networks", "networks", 7),
    "test": ("test images", "data", 7),
    "logits": ("logits", "evaluation", 8),
    "report": ("Report", "evaluation", 9),
    "figure": ("figure, table", "reproduction", 10),
}
ARROWS = [
    ("experiment", "dataset"), ("dataset", "pool"), ("pool", "buffers"), ("buffers", "distill"),
    ("pool", "distill"), ("distill", "set"), ("set", "train"), ("train", "networks"), ("networks", "logits"),
    ("dataset", "distill"), ("dataset", "buffers"), ("test", "logits"), ("logits", "report"), ("report", "figure"),
]
BELOW = [("dataset", "distill"), ("dataset", "buffers")]  # leave their box at the bottom, to pass below what lies between
DASHED = ("buffers",)  # only some methods need it
LABEL, STEP, LANE, WIDE, HIGH = 118, 104, 62, 86, 30


def place(name):
    "The middle of a station's box."
    _, lane, step = STATIONS[name]
    return LABEL + STEP * step + WIDE / 2 + 8, LANE * (list(LANES).index(lane) + 0.5)


def box(name):
    "A station as a box with its text."
    x, y = place(name)
    dash = ' stroke-dasharray="4 3"' if name in DASHED else ""
    left, top = x - WIDE / 2, y - HIGH / 2
    return (f'<rect x="{left:g}" y="{top:g}" width="{WIDE}" height="{HIGH}" rx="5" class="box"{dash}/>\n'
            f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{STATIONS[name][0]}</text>')


def arrow(start, end):
    "A line to the right: straight in a lane; between lanes with a step halfway, or just before a far end."
    (x0, y0), (x1, y1) = place(start), place(end)
    if (start, end) in BELOW:
        edge = y0 + (HIGH + LANE) / 4
        path = f"M{x0:g} {y0 + HIGH / 2:g}V{edge:g}H{x1 - STEP / 2:g}V{y1:g}H{x1 - WIDE / 2 - 2:g}"
        return f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>'
    x0, x1 = x0 + WIDE / 2, x1 - WIDE / 2
    middle = max((x0 + x1) / 2, x1 - (STEP - WIDE) / 2)
    path = f"M{x0:g} {y0:g}H{x1 - 2:g}" if y0 == y1 else f"M{x0:g} {y0:g}H{middle:g}V{y1:g}H{x1 - 2:g}"
    return f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>'


def lane(number, name, colour, width):
    "A room's lane with its name."
    y = LANE * number
    return (f'<rect x="0" y="{y}" width="{width}" height="{LANE}" fill="{colour}"/>\n'
            f'<text x="12" y="{y + LANE / 2 + 4:g}" class="room">{name}</text>')


def picture():
    "The SVG as text."
    width = LABEL + STEP * (1 + max(step for _, _, step in STATIONS.values())) + 8
    height = LANE * len(LANES)
    lanes = [lane(i, name, colour, width) for i, (name, colour) in enumerate(LANES.items())]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="12" fill="#222">',
        "<title>How data flows through the six rooms</title>",
        '<style>.box{fill:#fff;stroke:#555}.arrow{fill:none;stroke:#555;stroke-width:1.4}'
        '.room{font-weight:bold;font-size:13px}</style>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6"'
        ' orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        *lanes, *(arrow(a, b) for a, b in ARROWS), *map(box, STATIONS), "</svg>",
    ]) + "\n"


if __name__ == "__main__":
    (ROOT/"docs"/"rooms.svg").write_text(picture(), encoding="utf-8")
