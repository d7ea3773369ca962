"""Do two folders of figures and tables say the same?

    python tools/same_numbers.py OLD NEW [--only fig02,tab01] [--numbers-only]

Every value of every .csv in OLD must be in NEW, in the same row and column (new columns may be added), and
caption, claim and verdict in the .json must be the same text; with --numbers-only, the same numbers in it.
Prints a line for each item and exits with 1 if anything differs.
"""
import argparse
import csv
import json
import re
import sys
from pathlib import Path

TEXTS = ("caption", "claim", "verdict", "held")
SHOWN = 5  # differences shown of one item


def table(path):
    "The columns of a .csv, and its rows as dictionaries."
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return reader.fieldnames or [], rows


def equal(old, new):
    "Are two values of a table the same, as text or as numbers?"
    if old == new: return True
    try: return float(old) == float(new)
    except (TypeError, ValueError): return False


def compare_tables(old, new):
    "What is said of two .csv files (rows, values compared, new columns), and their differences."
    columns, rows = table(old)
    new_columns, new_rows = table(new)
    wrong = [f"column {c} is gone" for c in columns if c not in new_columns]
    if len(rows) != len(new_rows): wrong.append(f"{len(rows)} rows before, {len(new_rows)} now")
    common = [c for c in columns if c in new_columns]
    for i, (before, now) in enumerate(zip(rows, new_rows), 2):
        for c in common:
            if not equal(before[c], now[c]): wrong.append(f"line {i}, {c}: {before[c]} before, {now[c]} now")
    added = [c for c in new_columns if c not in columns]
    return (len(rows), min(len(rows), len(new_rows)) * len(common), added), wrong


def numbers(text):
    "The numbers in a text."
    return re.findall(r"-?\d+(?:\.\d+)?", str(text))


def compare_texts(old, new, only_numbers):
    "The differences of two descriptions."
    before, now = (json.loads(p.read_text(encoding="utf-8")) for p in (old, new))
    for key in TEXTS:
        a, b = before.get(key), now.get(key)
        same = numbers(a) == numbers(b) if only_numbers and isinstance(a, str) else a == b
        if not same: yield f"{key}:\n        before: {a}\n        now:    {b}"


def compare_item(stem, old, new, only_numbers):
    "One item: what is said of it, and its differences."
    counts, wrong = (0, 0, []), []
    if (old/f"{stem}.csv").exists():
        if (new/f"{stem}.csv").exists():
            counts, wrong = compare_tables(old/f"{stem}.csv", new/f"{stem}.csv")
        else:
            wrong.append(f"{stem}.csv is missing")
    if (old/f"{stem}.json").exists():
        if (new/f"{stem}.json").exists():
            wrong += compare_texts(old/f"{stem}.json", new/f"{stem}.json", only_numbers)
        else:
            wrong.append(f"{stem}.json is missing")
    return counts, wrong


def items(folder):
    "The names of the items in a folder."
    return {p.stem for kind in ("csv", "json") for p in folder.glob(f"*.{kind}")}


def compare(old, new, only=(), only_numbers=False):
    "Print a table of all items; the number of items that differ."
    chosen = [s for s in sorted(items(old)) if not only or s.split("-")[0] in only]
    if not chosen: sys.exit(f"{old} has nothing to compare")
    bad = 0
    print(f"{'item':12} {'rows':>6} {'values':>8}  new columns")
    for stem in chosen:
        (rows, values, added), wrong = compare_item(stem, old, new, only_numbers)
        print(f"{stem:12} {rows:6} {values:8}  {', '.join(added) or '-'}{'   DIFFERS' if wrong else ''}")
        for line in wrong[:SHOWN]: print(f"    {line}")
        if len(wrong) > SHOWN: print(f"    and {len(wrong) - SHOWN} more")
        bad += bool(wrong)
    extra = sorted(items(new) - items(old))
    if extra: print(f"only in {new}: {', '.join(extra)}")
    print(f"{len(chosen) - bad} of {len(chosen)} items are the same")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="names of items, with commas")
    parser.add_argument("--numbers-only", action="store_true", help="texts may change, their numbers not")
    args = parser.parse_args()
    asked = tuple(filter(None, args.only.split(",")))
    sys.exit(bool(compare(args.old, args.new, asked, args.numbers_only)))
