"The book: what its tool makes of notebooks, links and citations, and what the check of it notices."
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import book
import check_book

REFERENCES = (ROOT/"docs"/"references.md").read_text(encoding="utf-8")
NO_CITATION = ("Since 2018",)  # words that look like one


def prose():
    "Path and text of everything that may cite something."
    for path in [*ROOT.glob("nbs/**/[!.]*.ipynb"), *ROOT.glob("docs/*.md")]:
        if path.name in ("references.md", "results.md"): continue  # results.md repeats captions
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        yield path, text


def test_every_citation_is_in_the_references():
    known, lost = book.references(REFERENCES), set()
    for path, text in prose():
        text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", "", text, flags=re.S)
        for m in book.CITED.finditer(text):
            name = book.reference_name(m)
            # a name alone before a year may be anything, such as a month
            if m[2] and name not in known and m[0] not in NO_CITATION: lost.add(f"{path.name}: {m[0]} ({name})")
    assert len(known) > 20 and not lost


def test_every_reference_has_a_link():
    entries = re.findall(r"^- .+$", REFERENCES, re.M)
    assert all(re.search(r"\]\(https://[^)]+\)$", e) for e in entries) and len(entries) == len(book.references(REFERENCES))


@pytest.mark.parametrize("text, made", [
    ("as in Ma et al. (2024).", "as in [Ma et al. (2024)](#ref-ma-et-al-2024)."),
    ("(Ma et al. 2024, Fig. 2)", "([Ma et al. 2024](#ref-ma-et-al-2024), Fig. 2)"),
    ("(Zhao, Mopuri and Bilen 2021)", "([Zhao, Mopuri and Bilen 2021](#ref-zhao-et-al-2021))"),
    ("(Zhao and Bilen 2021)", "([Zhao and Bilen 2021](#ref-zhao-and-bilen-2021))"),
    ("`Ma et al. 2024` and [Ma et al. 2024](x)", "`Ma et al. 2024` and [Ma et al. 2024](x)"),
    ("(MTT, Cazenavette et al. 2022)", "(MTT, [Cazenavette et al. 2022](#ref-cazenavette-et-al-2022))"),
    ("# Ma et al. 2024\n\nby Efron 1979", "# Ma et al. 2024\n\nby [Efron 1979](#ref-efron-1979)"),
    ("Nobody et al. 2024", "Nobody et al. 2024")])
def test_citations_become_links(text, made):
    assert book.cite(text, book.references(REFERENCES)) == made


def test_a_chapter_is_made_readable():
    code, words = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    noise = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    nb = nbformat.v4.new_notebook(cells=[
        code("#| default_exp x"), code("#| export\nimport os\nfrom a import (\n    b)"), code("#| hide\n1"),
        words("# Title\n\n> Summary."), code("#| export\ndef f(): return 1"), code("f()", outputs=[noise])])
    made = book.readable(nb)
    assert [c.source for c in made.cells] == [
        "# Title\n\n> Summary.", "import os\nfrom a import (\n    b)", "def f(): return 1", "f()"]
    assert [c.metadata.get("tags") for c in made.cells] == [None, ["hide-input"], [], []]
    assert not made.cells[-1].outputs and len(nb.cells) == 6 and nb.cells[-1].outputs


def test_hidden_imports_stay_and_pictures_have_a_text():
    code, words = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    nb = nbformat.v4.new_notebook(cells=[
        code("#| hide\nimport a"), code("#| hide\nimport a\na.b()"), code("draw()"), words("*A [cat](cat.md),\nasleep.*"),
        code("#| fig-alt: two dogs: awake \ndraw()"), words("*One* cat and *two*"), code("draw()")])
    made = book.readable(nb).cells
    assert [c.source for c in made if c.cell_type == "code"] == ["import a", "draw()", "draw()", "draw()"]
    alts = [c.metadata.mystnb["image"]["alt"] for c in made if c.cell_type == "code"]
    assert alts[1:] == ["A cat, asleep.", "two dogs: awake", "what the code above draws"]


def test_the_book_is_laid_out_without_a_dead_link(tmp_path, monkeypatch):
    "Every page is there, with its links; laid out again, no file is written again."
    monkeypatch.setattr(book, "SOURCE", tmp_path)
    assert book.lay_out() == []
    chapters = list((ROOT/"nbs").glob("[a-z]*/[0-9]*.ipynb"))
    assert len(chapters) > 60 and all((tmp_path/p.relative_to(ROOT)).exists() for p in chapters)
    for at in ("index.md", "results/quick.md", "results/status.md", "api/core.checks.md", "docs/references.md"):
        assert (tmp_path/at).stat().st_size > 50, at
    assert "#ref-" in (tmp_path/"nbs"/"distillation"/"33_gradient_matching.ipynb").read_text(encoding="utf-8")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path/"nbs"/"gone.ipynb").write_text("{}")
    book.lay_out()
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_dead_links_are_found(tmp_path):
    (tmp_path/"sub").mkdir()
    (tmp_path/"index.html").write_text("<a href='sub/a.html#x'>a</a><a href='https://elsewhere'>e</a><h1 id='top'>t</h1>")
    (tmp_path/"sub"/"a.html").write_text("<p id='x'><a href='../index.html#top'>i</a></p>")
    assert list(check_book.dead_links(tmp_path)) == []
    (tmp_path/"sub"/"a.html").write_text("<a href='../b.html'>b</a><img src='c.png'><script src='https://cdn/x.js'></script>")
    found = "\n".join(check_book.dead_links(tmp_path))
    for part in ("index.html: links to sub/a.html#x", "links to ../b.html", "links to c.png", "loads https://cdn/x.js"):
        assert part in found
