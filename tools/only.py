"""Test single chapters and test files: python tools/only.py NAME[,NAME ...]

A name is a part of a chapter's or a test file's name: `poe`, `05_gradient`, `test_resume`.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def chapters(root, name):
    "The notebooks, other than those of the atlas, that have this in their name."
    return [p for p in sorted(root.glob("nbs/**/*.ipynb")) if name in p.stem and p.parent.name != "paper"]


def test_files(root, name):
    "The test files that have this in their name."
    return [p for p in sorted(root.glob("tests/test_*.py")) if name in p.stem]


def commands(root, names):
    "What is to be run, as lists of words."
    for name in names:
        found, tests = chapters(root, name), test_files(root, name)
        if not found and not tests: sys.exit(f"no chapter and no test file has {name!r} in its name")
        for path in found: yield [BIN/"nbdev_test", "--flags", "slow", "--path", path]
        if tests: yield [sys.executable, "-m", "pytest", "-q", *tests]


if __name__ == "__main__":
    asked = [name for word in sys.argv[1:] for name in word.split(",") if name]
    if not asked: sys.exit(__doc__)
    status = 0
    for words in list(commands(ROOT, asked)):
        print(" ".join(str(w) for w in words[1:]), flush=True)
        status |= subprocess.run([str(w) for w in words], cwd=ROOT).returncode
    sys.exit(bool(status))
