"Do notebooks, package and README agree? Prints every disagreement; exit status 1 if there is one."
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import readme
from count import notebooks

ROOT = readme.ROOT
HINT = "run `make prepare`"


def tool(name, folder):
    "Run one of nbdev's commands in `folder`."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    command = [Path(sys.executable).with_name(name)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{name} failed:\n{done.stdout}{done.stderr}")


def remade(folder):
    "A copy in `folder` with cleaned notebooks, and a package exported from nothing but them."
    shutil.copytree(ROOT/"nbs", folder/"nbs", ignore=shutil.ignore_patterns(".*", "_*"))
    shutil.copy(ROOT/"settings.ini", folder)
    (folder/"trustdd").mkdir()
    first = ROOT/"trustdd"/"__init__.py"
    if first.exists(): shutil.copy(first, folder/"trustdd")
    tool("nbdev_clean", folder)
    tool("nbdev_export", folder)


def check_package(folder):
    "The package against a fresh export."
    have, want = (python_files(base/"trustdd") for base in (ROOT, folder))
    for p in sorted(have - want):
        yield f"trustdd/{p}: no notebook makes it; remove it, or bring its notebook back"
    for p in sorted(want - have):
        yield f"trustdd/{p}: missing; {HINT}"
    for p in sorted(want & have):
        if not filecmp.cmp(ROOT/"trustdd"/p, folder/"trustdd"/p, shallow=False):
            yield f"trustdd/{p}: differs from what its notebook says; {HINT}"


def python_files(package):
    "The .py files of a package and its sub-packages, as paths in it."
    return {p.relative_to(package) for p in package.rglob("*.py")}


def check_clean(folder):
    "Notebooks against their cleaned copies."
    for p in notebooks(ROOT/"nbs"):
        name = p.relative_to(ROOT)
        if not filecmp.cmp(p, folder/name, shallow=False): yield f"{name}: not clean; {HINT}"


def check_cells():
    "No stored errors; one `parameters` cell in every paper notebook."
    for p in notebooks(ROOT/"nbs"):
        name, cells = p.relative_to(ROOT), json.loads(p.read_text(encoding="utf-8"))["cells"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        if any(o.get("output_type") == "error" for o in outputs):
            yield f"{name}: stores an error among its outputs"
        tags = sum("parameters" in c.get("metadata", {}).get("tags", []) for c in cells)
        if p.parent.name == "paper" and tags != 1:
            yield f"{name}: has {tags} cells tagged parameters, must have one"


def check_readme():
    "README.md against nbs/index.ipynb, and that what it links to is there."
    if not (ROOT/"nbs"/"index.ipynb").exists():
        yield "nbs/index.ipynb: missing, so there is no README"
        return
    text, pictures = readme.render()
    at = ROOT/"README.md"
    if not at.exists() or at.read_text(encoding="utf-8") != text:
        yield f"README.md: is not what its sources make; {HINT}"
    for name, data in pictures.items():
        if not (ROOT/name).exists() or (ROOT/name).read_bytes() != data:
            yield f"{name}: is not what its sources make; {HINT}"
    for p in readme.stale(pictures):
        yield f"{p.relative_to(ROOT)}: no longer in README.md; {HINT}"
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)\s#]+)", prose):
        if not re.match(r"[a-z+]+:", target) and not (ROOT/target).exists():
            yield f"README.md: links to {target}, which does not exist"
    yield from readme.pages.broken_links()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        remade(copy)
        wrong = [*check_package(copy), *check_clean(copy), *check_cells(), *check_readme()]
    said = "\n".join(wrong) or f"{len(notebooks(ROOT/'nbs'))} notebooks, package and README agree"
    print(said, file=sys.stderr if wrong else sys.stdout)
    sys.exit(bool(wrong))
