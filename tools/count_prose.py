"""Measure how the notebooks read: prose beside code, length of cells, outputs, visible checks, examples.

    python tools/count_prose.py [PROJECT]        # this project if none is named
"""
import ast
import json
import re
import statistics
import sys
from pathlib import Path

from count import notebooks, ROOT

CHECK = re.compile(r"^\s*(assert\b|test_(eq|ne|close|fail|is)\()", re.M)
HIDDEN = re.compile(r"^#\|\s*hide\b", re.M)
EXPORT = re.compile(r"^#\|\s*exporti?\b", re.M)


class Cell:
    "A cell with what is asked of it."
    def __init__(self, cell):
        self.text = "".join(cell["source"])
        self.code, self.prose = cell["cell_type"] == "code", cell["cell_type"] == "markdown"
        self.export = self.code and bool(EXPORT.search(self.text))
        self.hidden = self.code and bool(HIDDEN.search(self.text))
        self.shows = bool(cell.get("outputs"))
        self.pictures = sum("image/png" in out.get("data", {}) for out in cell.get("outputs", ()))

    @property
    def lines(self):
        "Lines of code, without empty ones and directives."
        return [l for l in self.text.splitlines() if l.strip() and not l.startswith("#|")]

    @property
    def defined(self):
        "Public functions and classes at the top of an exported cell."
        try: body = ast.parse(self.text).body
        except SyntaxError: return []  # a cell with a magic
        kinds = ast.FunctionDef, ast.ClassDef
        return [n.name for n in body if isinstance(n, kinds) and n.name[0] != "_"]


def cells_of(path):
    "The cells of a notebook."
    return [Cell(c) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def without_use(cells):
    "Exported public definitions that no visible cell uses before the next exported one; how many."
    missing, places = [], [i for i, c in enumerate(cells) if c.export]
    for place, end in zip(places, [*places[1:], len(cells)]):
        after = " ".join(c.text for c in cells[place + 1:end] if c.code and not c.hidden)
        missing += [n for n in cells[place].defined if not re.search(rf"\b{n}\b", after)]
    return missing, sum(len(cells[i].defined) for i in places)


def chapters(project):
    "The notebooks that export modules or explain them, without tour, guides, figures and tables."
    return [p for p in notebooks(project/"nbs") if p.parent.name not in ("nbs", "paper", "guides")]


def checks(cells):
    "The cells that hold a check and export nothing."
    return [c for c in cells if c.code and not c.export and CHECK.search(c.text)]


def share(part, whole):
    "A part in percent."
    return f"{part / whole:.0%}" if whole else "-"


def reading(paths):
    "What is measured of some notebooks -> its value."
    books = [cells_of(p) for p in paths]
    cells = [c for book in books for c in book]
    prose = "\n".join(c.text for c in cells if c.prose)
    code = sum(len(c.lines) for c in cells if c.code)
    exported = [c for c in cells if c.export]
    free = [c for c in cells if c.code and not c.export and not c.hidden and c.lines]
    checked = checks(cells)
    unused, defined = zip(*map(without_use, books))
    words = len(re.sub(r"\$\$.*?\$\$|```.*?```", " ", prose, flags=re.S).split())
    return {
        "notebooks": len(books),
        "words of prose per line of code": f"{words / code:.1f}",
        "median lines of an exported cell": statistics.median(
            [len(c.lines) for c in exported] or [0]),
        "longest exported cell": max([len(c.lines) for c in exported] or [0]),
        "cells without export that show an output": share(sum(c.shows for c in free), len(free)),
        "checks in hidden cells": share(sum(c.hidden for c in checked), len(checked)),
        "exported definitions without a visible use before the next": share(
            sum(map(len, unused)), sum(defined)),
        "pictures stored": sum(c.pictures for c in cells),
        "displayed equations": prose.count("$$") // 2,
        '"you" / "for example"': f"{len(re.findall(r'(?i)[`]?you(r|rs)?[`]?', prose))} / "
                                 f"{len(re.findall(r'(?i)for example', prose))}",
    }


def in_package(project):
    "Lambdas and comprehensions for each 100 lines of the package's code."
    nodes, lines = [], 0
    for path in sorted((project/"trustdd").rglob("*.py")):
        if path.name in ("_modidx.py", "__init__.py"): continue
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        nodes += ast.walk(ast.parse(text))
    loops = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
    counts = [sum(isinstance(n, kind) for n in nodes) for kind in (ast.Lambda, loops)]
    return ", ".join(f"{100 * n / lines:.1f}" for n in counts)


def main():
    project = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    every = notebooks(project/"nbs")
    stored = sorted((project/"figures").glob("*/notebooks/*.ipynb"))
    groups = {"chapters": chapters(project), "tour and guides": [
                  p for p in every if p.parent.name == "guides" or p.name == "00_tour.ipynb"],
              "figures and tables": [p for p in every if p.parent.name == "paper"],
              "figures and tables, as kept": stored}
    for name, paths in groups.items():
        print(f"{name}\n" + "\n".join(f"  {k:60} {v}" for k, v in reading(paths).items()))
    print(f"package\n  {'lambdas, comprehensions per 100 lines':60} {in_package(project)}")


if __name__ == "__main__": main()
