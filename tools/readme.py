"README.md from nbs/index.ipynb: the same words, code and outputs, with links that work from the project's folder."
import posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "figures/readme"
NOTE = "<!-- Made from nbs/index.ipynb by `make prepare`; edit that. -->\n\n"
OUTPUTS = ["text/markdown", "image/png", "image/jpeg", "text/plain"]  # the first that a cell has


def visible(cell):
    "Is the cell for the reader, and does anything of it remain?"
    text = cell.source.strip()
    return text and not re.search(r"^#\|\s*(hide|default_exp|include:\s*false)\b", text, re.M)


def quiet(cell):
    "Is only what the cell makes for the reader, as Markdown?"
    return cell.cell_type == "code" and re.search(r"^#\|\s*echo:\s*false", cell.source, re.M)


def relink(text):
    "Links and pictures that are right from nbs/, made right from the project's folder; code stays as it is."
    def fix(m):
        target = m[2]
        return m[0] if re.match(r"[a-z+]+:|[#/]", target) else m[1] + posixpath.normpath("nbs/" + target)
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    return "".join(p if p.startswith("`") else re.sub(r'((?:\]\(|(?:src|href)="))([^)\s"]+)', fix, p) for p in parts)


def prepare(nb):
    "The notebook as the README shows it."
    nb.metadata["language_info"] = {"name": "python"}
    nb.cells = [c for c in nb.cells if visible(c)]
    for cell in nb.cells:
        if quiet(cell): cell.source, cell.cell_type = "\n\n".join(o.data.get("text/markdown", "") for o in cell.outputs if "data" in o), "markdown"
        if cell.cell_type == "markdown": cell.source = relink(cell.source); continue
        if cell.cell_type != "code": continue
        silent = re.search(r"^#\|\s*output:\s*false", cell.source, re.M)
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        cell.outputs = [] if silent else [o for o in cell.outputs if o.get("name") != "stderr"]
        for out in cell.outputs:
            if "data" in out:
                best = next((k for k in OUTPUTS if k in out.data), None)
                out.data = {best: out.data[best]} if best else {}
    return nb


def render(path=ROOT/"nbs"/"index.ipynb"):
    "The README's text, and its pictures as {path: bytes}."
    import nbformat
    from nbconvert import MarkdownExporter
    text, extra = MarkdownExporter().from_notebook_node(prepare(nbformat.read(path, 4)), {"unique_key": "readme", "output_files_dir": PICTURES})
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("![png](", "![output](").replace("![jpeg](", "![output](")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
    return NOTE + text + "\n", dict(extra.get("outputs") or {})


def stale(pictures):
    "Pictures that an older README had."
    return [p for p in sorted((ROOT/PICTURES).glob("readme_*")) if f"{PICTURES}/{p.name}" not in pictures]


if __name__ == "__main__":
    if not (ROOT/"nbs"/"index.ipynb").exists(): sys.exit("nbs/index.ipynb is missing: there is nothing to make README.md from")
    text, pictures = render()
    (ROOT/"README.md").write_text(text, encoding="utf-8")
    for p in stale(pictures): p.unlink()
    for name, data in pictures.items():
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/name).write_bytes(data)
