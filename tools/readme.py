"README.md from nbs/index.ipynb, with links that work from the project's folder; and the parts of docs/ that are made."
import base64
import json
import posixpath
import re
import sys
from pathlib import Path

import pages

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "figures/readme"
NOTE = "<!-- Made from nbs/index.ipynb by `make prepare`; edit that. -->\n\n"
OUTPUTS = ["text/markdown", "image/png", "image/jpeg", "text/plain"]  # the first that a cell has


def visible(cell):
    "Is the cell for the reader, and does anything of it remain?"
    text = cell.source.strip()
    return text and not re.search(r"^#\|\s*(hide|default_exp|include:\s*false)\b", text, re.M)


def directive(cell, name):
    "The value of a line `#| name: value` in a code cell, or None."
    found = re.search(rf"^#\|\s*{name}:\s*(.+)$", cell.source, re.M)
    return found[1].strip() if cell.cell_type == "code" and found else None


def relink(text):
    "Links and pictures that are right from nbs/, made right from the project's folder; code stays as it is."
    def fix(m):
        target = m[2]
        return m[0] if re.match(r"[a-z+]+:|[#/]", target) else m[1] + posixpath.normpath("nbs/" + target)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    return "".join(p if p.startswith("`") else re.sub(r'((?:\]\(|(?:src|href)="))([^)\s"]+)', fix, p) for p in parts)


def made(cell, pictures):
    "What a cell without visible code made, as Markdown: `#| fig-alt:` says what its picture shows."
    parts = []
    for data in (o.data for o in cell.outputs if "data" in o):
        if "image/png" in data:
            name = f"{PICTURES}/readme_{cell.id}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            parts.append(f"![{directive(cell, 'fig-alt') or 'output'}]({name})")
        else: parts.append(relink(data.get("text/markdown", "")))
    return "\n\n".join(parts)


def prepare(nb, pictures):
    "Make the notebook what the README shows; pictures of cells without visible code are added to `pictures`."
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if visible(c)]
    for cell in nb.cells:
        if directive(cell, "echo") == "false":
            cell.source, cell.cell_type, cell.outputs = made(cell, pictures), "markdown", []
        elif cell.cell_type == "markdown": cell.source = relink(cell.source)
        elif cell.cell_type == "code": keep_best(cell)


def keep_best(cell):
    "A code cell without directives, and of each output only the form that Markdown can show best."
    silent = directive(cell, "output") == "false"
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
    cell.outputs = [] if silent else [o for o in cell.outputs if o.get("name") != "stderr"]
    for out in cell.outputs:
        if "data" not in out: continue
        best = next((k for k in OUTPUTS if k in out.data), None)
        out.data = {best: out.data[best]} if best else {}


def render(path=ROOT/"nbs"/"index.ipynb"):
    "The README's text, and what else is made: its pictures and pages of docs/, as {path: bytes}."
    import nbformat
    from nbconvert import MarkdownExporter
    nb, pictures = nbformat.read(path, 4), {}
    alts = [directive(cell, "fig-alt") or "output" for cell in nb.cells if visible(cell)]
    prepare(nb, pictures)
    where = {"unique_key": "readme", "output_files_dir": PICTURES}
    text, extra = MarkdownExporter().from_notebook_node(nb, where)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(rf"!\[(?:png|jpeg)\]\(({PICTURES}/readme_(\d+)_)", lambda m: f"![{alts[int(m[2])]}]({m[1]}", text)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
    pictures |= extra.get("outputs") or {}
    makers = pages.SOURCES if pages.results_changed() else pages.MAKERS
    return NOTE + text + "\n", pictures | pages.pages(makers)


def stale(pictures):
    "Pictures that an older README had."
    return [p for p in sorted((ROOT/PICTURES).glob("readme_*")) if f"{PICTURES}/{p.name}" not in pictures]


def drop_bars(path=ROOT/"nbs"/"index.ipynb"):
    "Remove what the notebook's cells wrote to stderr, such as progress bars, from the stored outputs."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if "outputs" in cell: cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    path.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


LINES, WORDS = 150, 900


def too_long(text):
    "A line if the README has grown: what does not fit belongs on a page in docs/."
    lines, words = text.count("\n"), len(text.split())
    if lines > LINES or words > WORDS: yield f"README.md has {lines} lines and {words} words, more than {LINES} and {WORDS}"


if __name__ == "__main__":
    if not (ROOT/"nbs"/"index.ipynb").exists(): sys.exit("nbs/index.ipynb is missing: there is nothing to make README.md from")
    drop_bars()
    text, files = render()
    (ROOT/"README.md").write_text(text, encoding="utf-8")
    for p in stale(files): p.unlink()
    for name, data in (files | pages.pages()).items():
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/name).write_bytes(data)
    sys.exit("\n".join([*too_long(text), *pages.broken_links()]) or 0)
