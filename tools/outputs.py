"""Which chapters store other outputs than they give now? python tools/outputs.py [--write] [NAME ...]

A name is a part of a chapter's name, as for tools/only.py; without one, all chapters are executed. Cells whose text
differs are printed. Seconds, dates and the like differ each time; what is read from figures/ differs after a redraw.
--write stores the new outputs of the chapters that differ.
"""
import argparse
import base64
import difflib
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from chapters import ROOT, chapters


def text_of(cell):
    "What a reader sees of a cell's outputs, any picture in a word; error streams are not kept."
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout": parts.append(output.text)
        data = output.get("data", {})
        parts.append(data.get("text/markdown") or data.get("text/plain", "")) # of a picture: its size and number of axes
        if "image/png" in data: parts.append(f"a picture, pixels {hashlib.sha256(base64.b64decode(data['image/png'])).hexdigest()[:8]}")
    return re.sub(r" at 0x[0-9a-f]+", "", "\n".join(parts))


def differences(before, after):
    "(source of the cell, lines of a diff) of each code cell whose outputs differ."
    for old, new in zip(before.cells, after.cells):
        lines = list(difflib.unified_diff(text_of(old).splitlines(), text_of(new).splitlines(), lineterm="", n=0))
        if lines: yield old.source, lines[2:]


def executed(path):
    "The chapter as it comes out now, without what is written to the error stream."
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        cell.metadata.pop("execution", None)
    return notebook


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="store the new outputs")
    asked = parser.parse_args()
    for path in chapters(ROOT):
        if asked.names and not any(name in path.stem for name in asked.names): continue
        before, after = nbformat.read(path, 4), executed(path)
        found = list(differences(before, after))
        print(f"{path.relative_to(ROOT)}: {len(found)} cells differ", flush=True)
        for source, lines in found: print("", source.splitlines()[-1], *lines, sep="\n    ")
        if found and asked.write:
            nbformat.write(after, path)
            subprocess.run([Path(sys.executable).parent/"nbdev_clean", "--fname", path], check=True)


if __name__ == "__main__": sys.exit(main())
