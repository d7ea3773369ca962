"""Run chapters with their cells marked `#| gpu`, in any Python that has torch and fastcore (nbdev is not needed):

    python tools/gpu_cells.py [CHAPTER ...] [--only TEXT]

A cell's last value is printed with its seconds. A cell that fails does not stop the others; exit status 1 if one did.
"""
import argparse
import ast
import re
import sys
import time
import traceback
from pathlib import Path

from count import ROOT, code_cells, notebooks


def marked(source, word):
    "Has a cell this directive?"
    return re.search(rf"^#\| {word}\b", source, re.M)


def run(source, name, space):
    "Run a cell in `space`; its last expression's value."
    body = ast.parse(source, name).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), space)
    return eval(compile(ast.Expression(last.value), name, "eval"), space) if last else None


def chapter(path, only):
    "Run a chapter; the names of its cells that failed."
    failed, space = [], {"__name__": "__main__"}
    for i, source in enumerate(code_cells(path)):
        name, gpu = f"{path.stem}, code cell {i}", marked(source, "gpu")
        if marked(source, "(slow|data)") or gpu and only and only not in source: continue
        begun = time.perf_counter()
        try:
            value = run(source, name, space)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        if gpu: print(f"{name}: {time.perf_counter() - begun:.1f} s: {value!r}", flush=True)
    return failed


def chosen(root, names):
    "The notebooks with these names, or all that have cells for a GPU; the atlas stays out."
    chapters = [p for p in notebooks(root/"nbs") if p.parent.name != "paper"]
    if not names: return [p for p in chapters if any(marked(s, "gpu") for s in code_cells(p))]
    known = {p.stem: p for p in chapters}
    unknown = [n for n in names if Path(n).stem not in known]
    if unknown: sys.exit(f"no chapter is called {', '.join(unknown)}")
    return [known[Path(n).stem] for n in names]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run chapters with their cells for a GPU.")
    parser.add_argument("chapters", nargs="*", help="such as 05_gradient_matching; all with such cells if none is named")
    parser.add_argument("--only", help="of the GPU's cells only those with this text in them")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    paths = chosen(ROOT, args.chapters)
    wrong = [name for p in paths for name in chapter(p, args.only)]
    print("\n".join(["failed:", *wrong]) if wrong else f"{len(paths)} chapters ran")
    sys.exit(bool(wrong))
