"""The book: tour, chapters, results, guides and an API reference as a site in build/book/html that opens from disk.

    make book        # or: python tools/book.py, in an environment with the extra `book`

Everything is laid out under build/book/source as it is in the project, so that links between pages stay as they are.
"""
import copy
import os
import posixpath
import re
import subprocess
import sys

import nbformat

import pages
from count import ROOMS, modules

ROOT = pages.ROOT
SOURCE, SITE = ROOT/"build"/"book"/"source", ROOT/"build"/"book"/"html"
GUIDES = ("own-images", "distilled-sets", "command-line", "presets", "clusters", "speed", "differences")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp)\b", re.M)
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)\s"#]+)')


# --- citations

CITED = re.compile(r"\b([A-Z][\w-]+)( et al\.|(?:, [A-Z][\w-]+)* and [A-Z][\w-]+)?,? \(?((?:19|20)\d\d)\)?")


def reference_name(match):
    "A citation as docs/references.md begins its entry: three names and more are `et al.`."
    first, more, year = match.groups()
    return f"{first}{' et al.' if ',' in (more or '') else more or ''} {year}"


def anchor(name): return "ref-" + re.sub(r"\W+", "-", name.lower()).strip("-")


def references(text):
    "The names of the entries of docs/references.md."
    return set(re.findall(r"^- \*\*(.+?)\.\*\*", text, re.M))


def cite(text, known):
    "Citations as links to the references; code, links and headings stay as they are."
    def link(m):
        name = reference_name(m)
        whole = m[0] if not m[0].endswith(")") or "(" in m[0] else m[0][:-1]
        return f"[{whole}](#{anchor(name)}){m[0][len(whole):]}" if name in known else m[0]
    parts = re.split(r"(```.*?```|`[^`\n]*`|\[[^\]]*\]\([^)]*\)|^#[^\n]*|\$\$.*?\$\$)", text, flags=re.S | re.M)
    return "".join(p if i % 2 else CITED.sub(link, p) for i, p in enumerate(parts))


# --- pages

class Book:
    "Copies pages into SOURCE, and what they link to."
    def __init__(self):
        self.pages = {p for p in [*ROOT.glob("docs/*.md"), *ROOT.glob("nbs/**/[!.]*.ipynb"), ROOT/"workflow"/"README.md"]
                      if p.parent.name != "paper" and p != ROOT/"nbs"/"index.ipynb"}
        self.pages -= {ROOT/"docs"/"README.md"}
        self.kept, self.waiting = set(), []  # files of the book; pages that others link to
        self.known = references((ROOT/"docs"/"references.md").read_text(encoding="utf-8"))
        self.wrong = []

    def relink(self, text, page):
        "The text of a page with links to folders led to their pages; files that it links to are copied."
        def fix(m):
            target = m[2]
            if re.match(r"[a-z+]+:|/", target): return m[0]
            at = posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), target))
            return m[1] + posixpath.relpath(self.place(at, page), page.parent.relative_to(ROOT).as_posix())
        parts = CODE.split(text)
        return "".join(p if i % 2 else LINK.sub(fix, p) for i, p in enumerate(parts))

    def place(self, at, page):
        "Where the book has what is at this path of the project."
        path = ROOT/at
        if at in ("docs/README.md", "README.md", "nbs/index.ipynb"): return "index.md"
        if at in ("docs/chapters.md",) or path in self.pages: return at
        if path.is_dir():
            if at == "nbs/paper": return f"results/{PRESETS[0]}.md"
            if at.startswith("nbs/"): return f"{at}/index.md"
            if path.parent == ROOT/"figures": return f"results/{path.name}.md"
            return self.place(f"{at}/README.md", page)
        executed = re.fullmatch(r"nbs/paper/([a-z]+\d+)_\w+\.ipynb", at)
        if executed: return self.executed(executed[1])
        made = re.fullmatch(r"(figures/(\w+))/(?:notebooks/)?([a-z]+\d+)\.(?:md|ipynb)", at)
        if made and made[2] in PRESETS: return f"{made[1]}/notebooks/{made[3]}.ipynb"
        if path.suffix == ".md" and path.is_file():
            self.pages.add(path)
            self.waiting.append(path)
        elif path.is_file(): self.copy(path)
        else: self.wrong.append(f"{page.relative_to(ROOT)} links to {at}, which does not exist")
        return at

    def executed(self, name):
        "The page of a figure or table, in the first preset that has it."
        for preset in PRESETS:
            if (ROOT/"figures"/preset/f"{name}.json").exists(): return f"figures/{preset}/notebooks/{name}.ipynb"
        return "results/index.md"

    def copy(self, path): self.keep(path.relative_to(ROOT), path.read_bytes())
    def write(self, at, text): self.keep(at, text.encode())

    def keep(self, at, data):
        "Write a file of the book; one that has not changed stays as it is, and is not built again."
        to = SOURCE/at
        self.kept.add(to)
        if to.exists() and to.read_bytes() == data: return
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)

    def finish(self):
        "Pages that are linked to but in no table of contents; files of an earlier book go."
        while self.waiting: self.markdown(self.waiting.pop(), "---\norphan: true\n---\n")
        for path in SOURCE.rglob("*"):
            if path.is_file() and path not in self.kept: path.unlink()

    def markdown(self, path, head=""):
        "A page of the project."
        text = path.read_text(encoding="utf-8")
        at = path.relative_to(ROOT).as_posix()
        if path.name != "references.md": text = cite(text, self.known)
        else: text = re.sub(r"^- \*\*(.+?)\.\*\*", lambda m: f"({anchor(m[1])})=\n\n**{m[1]}.**", text, flags=re.M)
        self.write(at, head + self.relink(text, path))

    def notebook(self, path, at=None, more=()):
        "A notebook as a page; `more` are paragraphs at its end."
        nb = readable(nbformat.read(path, 4))
        for cell in nb.cells:
            if cell.cell_type == "markdown": cell.source = self.relink(cite(cell.source, self.known), path)
        nb.cells += [nbformat.v4.new_markdown_cell(text, id=f"more-{i}") for i, text in enumerate(more)]
        self.write(at or path.relative_to(ROOT).as_posix(), nbformat.writes(nb))


def readable(nb):
    "A notebook without nbdev's directives and hidden cells (but for imports), and with its title first."
    nb = copy.deepcopy(nb)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    nb.cells = [c for c in nb.cells if c.source.strip() and (only_imports(c.source) or not HIDDEN.search(c.source))]
    for cell, after in zip(nb.cells, [*nb.cells[1:], None]):
        if cell.cell_type != "code": continue
        words = re.findall(r"^#\|\s*([\w-]+)(?::\s*(.+?))?\s*$", cell.source, re.M)
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip()
        cell.outputs = [] if ("output", "false") in words else [o for o in cell.outputs if o.get("name") != "stderr"]
        tags = ["remove-input"] if ("echo", "false") in words else ["hide-input"] if only_imports(cell.source) else []
        cell.metadata = {"tags": tags, "mystnb": {"image": {"alt": dict(words).get("fig-alt") or caption(after)}}}
    titles = [c for c in nb.cells if c.cell_type == "markdown" and c.source.startswith("# ")]
    for first in titles[:1]: nb.cells = [first, *(c for c in nb.cells if c is not first)]
    return nb


def caption(cell):
    "What a picture shows, in the words of the cell after it if that is a caption."
    said = re.match(r"\*([^*]+)\*\s*$", cell.source) if cell else None
    return re.sub(r"\[(.*?)\]\(.*?\)|\s+", lambda m: m[1] or " ", said[1]) if said else "what the code above draws"


def only_imports(source):
    "Does a cell do nothing but import?"
    lines = [l for l in source.splitlines() if l.strip() and not l.startswith((" ", ")", "#"))]
    return bool(lines) and all(l.startswith(("import ", "from ")) for l in lines)


def toctree(*names, caption="", depth=1, hidden=True):
    "A table of contents in MyST."
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [f":maxdepth: {depth}"]
    return "\n".join(["```{toctree}", *options, "", *names, "```"])


# --- parts

def chapters(book):
    "A page for each room, with its chapters."
    text = (ROOT/"docs"/"architecture.md").read_text(encoding="utf-8")
    purpose = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.M))
    for room in ROOMS:
        table = pages.chapter_table(f"nbs/{room}").replace(f"(../nbs/{room}/", "(")
        names = sorted(p.stem for p in (ROOT/"nbs"/room).glob("[!.]*.ipynb"))
        book.write(f"nbs/{room}/index.md", f"# {room.capitalize()}\n\nThis room {purpose[room]}.\n\n{table}\n\n{toctree(*names)}\n")


def results(book):
    "A page for each preset with figures, and one for each figure and table: its executed notebook."
    from trustdd.reproduction import gallery
    known = gallery.notebooks()
    for preset in PRESETS:
        rows = []
        for entry in gallery.entries(ROOT/"figures"/preset):
            source, title = known.get(entry.name, (None, entry.name))
            word = gallery.VERDICT_WORDS[entry.held]
            rows.append(f"| [{title}](../figures/{preset}/notebooks/{entry.name}.ipynb) | {word} | {gallery.cost_word(entry)} |")
            figure_page(book, entry, source, title)
        said = gallery.tally_text(gallery.tally(gallery.entries(ROOT/"figures"/preset)))
        head = "| figure or table | its claim | made again in |\n|---|---|---|"
        names = [f"../figures/{preset}/notebooks/{e.name}" for e in gallery.entries(ROOT/"figures"/preset)]
        book.write(f"results/{preset}.md", f"# Results: {preset}\n\n{gallery.ABOUT.get(preset, '')} Of {len(rows)} claims: "
                   f"{said}.\n\n" + "\n".join([head, *rows]) + f"\n\n{toctree(*names)}\n")


def figure_page(book, entry, source, title):
    "The executed notebook with links to its files; without one, the picture or table."
    folder = entry.folder.relative_to(ROOT).as_posix()
    at = f"{folder}/notebooks/{entry.name}"
    files = [p for p in (entry.file(k) for k in ("csv", "png", "pdf", "tex", "json")) if p.exists()]
    if source: files.insert(0, source)
    for path in files: book.copy(path)
    names = {".ipynb": "notebook without outputs"}
    places = [posixpath.relpath(p.relative_to(ROOT).as_posix(), f"{folder}/notebooks") for p in files]
    links = " · ".join(f"{{download}}`{names.get(p.suffix, p.suffix[1:])} <{place}>`" for p, place in zip(files, places))
    from trustdd.reproduction.gallery import cost_word
    runs = len(entry.facts.get("runs", []))
    last = (f"## Files\n\n{links}\n\nMade from {runs or 'no'} run{'s' * (runs != 1)}; made again in {cost_word(entry)}. "
            f"`trustdd explain figures/{entry.folder.name}/{entry.name}.csv ROW COLUMN` leads from a number to its runs.")
    executed = entry.folder/"notebooks"/f"{entry.name}.ipynb"
    if executed.exists(): return book.notebook(executed, more=[last])
    body = f"![{entry.name}](../{entry.name}.png)"
    if entry.file("md").exists():
        body = "\n".join(l for l in entry.file("md").read_text(encoding="utf-8").splitlines() if l.startswith("|"))
    facts = entry.facts
    said = f"*{facts.get('verdict') or ''}*{pages.tests(facts)}"
    cells = [f"# {title}", f"**Claim.** {facts.get('claim') or ''}", body, facts["caption"], said, last]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id=f"cell-{i}") for i, text in enumerate(cells)])
    book.write(f"{at}.ipynb", nbformat.writes(nb))


def api(book):
    "A page for each module, and one with the names at the top of the package."
    import trustdd
    found = modules(ROOT/"trustdd")
    for room in ROOMS:
        names = [n for n in found if n.startswith(f"trustdd.{room}.") and not n.endswith("__main__")]
        for name in names:
            short = name.removeprefix("trustdd.")
            book.write(f"api/{short}.md", f"# {short}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n")
        book.write(f"api/{room}.md", f"# {room}\n\n{toctree(*(n.removeprefix('trustdd.') for n in names), hidden=False)}\n")
    rows = ["| name | |", "|---|---|"]
    for name in sorted(n for n in trustdd.__all__ if not n.startswith("_")):
        thing = getattr(trustdd, name)
        home, about = getattr(thing, "__module__", ""), (thing.__doc__ or "").strip().splitlines()[:1]
        link = f"[`{name}`]({home.removeprefix('trustdd.')}.md)" if home in found else f"`{name}`"
        rows.append(f"| {link} | {(about or [''])[0]} |".replace("\\", "\\\\"))
    book.write("api/index.md", "# API reference\n\nThese names are at the top of the package, such as `trustdd.distill`. "
               "The others are in the modules of the six rooms.\n\n" + "\n".join(rows) + f"\n\n{toctree(*ROOMS)}\n")


def front(book):
    "README.md, and the contents of the book."
    text = re.sub(r"^<!--.*?-->\s*", "", (ROOT/"README.md").read_text(encoding="utf-8"))
    parts = [
        toctree("nbs/00_tour", "nbs/guides/use_it", caption="Start"),
        toctree(*(f"nbs/{room}/index" for room in ROOMS), caption="Chapters"),
        toctree("docs/results", *(f"results/{p}" for p in PRESETS), *["results/status"], caption="Results"),
        toctree("nbs/guides/own_method", "nbs/guides/own_corruption", "nbs/guides/own_network",
                "nbs/guides/judge_a_set", "nbs/guides/profile", *(f"docs/{g}" for g in GUIDES), "workflow/README", caption="Guides"),
        toctree("docs/architecture", "docs/chapters", "api/index", "docs/references", caption="Reference"),
    ]
    book.write("index.md", book.relink(cite(text, book.known), ROOT/"README.md") + "\n\n" + "\n\n".join(parts) + "\n")


def status(book):
    "Every notebook of every preset: made when, from which commit, in how many seconds."
    from trustdd.reproduction.plan import as_markdown, status_of
    parts = []
    for preset in PRESETS:
        link = f"../figures/{preset}/notebooks/{{name}}.ipynb"
        parts.append(f"## {preset}\n\n{as_markdown(status_of(preset), link)}")
    text = "\n\n".join(parts)
    book.write("results/status.md", "# Status\n\nWhen and from what each notebook was made. `trustdd status` says the same in a "
               f"terminal, and what `make paper` would make again.\n\n{text}\n")


PRESETS = [p.name for p in (ROOT/"figures").glob("*") if p.name in ("quick", "cifar", "long", "paper") and list(p.glob("*.json"))]
PRESETS.sort(key=("quick", "cifar", "long", "paper").index)


def lay_out():
    "Write all sources of the book; returns links that lead nowhere."
    book = Book()
    for path in sorted(book.pages): (book.notebook if path.suffix == ".ipynb" else book.markdown)(path)
    for part in (chapters, results, status, api, front): part(book)
    book.finish()
    return book.wrong


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    wrong = lay_out()
    if wrong: sys.exit("\n".join(wrong))
    words = ["-q", "-W", "--keep-going", "-b", "html", "-j", "2", "-c", ROOT/"docs"/"book", "-d", SITE.parent/"doctrees", SOURCE, SITE]
    done = subprocess.run([sys.executable, "-m", "sphinx", *map(str, words)], cwd=ROOT)
    if done.returncode: sys.exit(done.returncode)
    print(f"the book is in {SITE.relative_to(ROOT)}/index.html: open it in your browser")
