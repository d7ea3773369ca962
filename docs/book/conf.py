"How Sphinx builds the book from what tools/book.py lays out; `make book` runs both."
import inspect
import re
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
config = ConfigParser(delimiters=["="])
config.read(ROOT/"settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

project, author, copyright = "TrustDD", settings["author"], settings["copyright"]
version = release = settings["version"]
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["nbs/paper/*", "nbs/index.ipynb"]

myst_enable_extensions = ["amsmath", "dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks carry their outputs
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "Imports"  # no other cells are folded
suppress_warnings = ["myst.header", "mystnb.mime_priority", "mystnb.unknown_mime_type"]
default_role = "literal"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"

html_theme = "sphinx_book_theme"
html_title = "TrustDD"
mathjax = find_spec("sphinx-mathjax-offline")  # its files only: formulas show without a network
html_static_path = ["static", str(Path(mathjax.origin).parent/"static")]
mathjax_path = "mathjax/tex-chtml.js"
html_css_files = ["book.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # the search is at the side
}


def parameters(thing):
    "Parameter -> the comment behind it in the source."
    from fastcore.docments import docments
    try: found = docments(thing)
    except Exception: return {}  # no source, such as an attribute
    return {name: text for name, text in found.items() if text and name not in ("return", "self")}


def as_rst(line):
    "A line of a docstring, which is plain text with code in backquotes."
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{p}`" if p.startswith("`") else re.sub(r"([*|\\]|_\b)", r"\\\1", p) for p in parts)


def finish(app, what, name, thing, options, lines):
    "Docstrings as text, with the comments behind parameters as a list."
    lines[:] = [as_rst(line) for line in lines]
    if not (inspect.isroutine(thing) or inspect.isclass(thing)): return
    said = parameters(thing)
    if said: lines += ["", *(f":param {name}: {as_rst(' '.join(str(text).split()))}" for name, text in said.items())]


def setup(app): app.connect("autodoc-process-docstring", finish)
