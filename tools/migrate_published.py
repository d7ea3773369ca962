"""Bring a run store of version 0.1 to the names of today.

    python tools/migrate_published.py [STORE]        # published/ if none is named

Fields of experiments have other names: in configurations and reports, and in what files of tensors say about
themselves. Tensors stay as they are, byte for byte. A store that is already renamed is left alone.
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {"opc": "outliers_per_slot", "lr_lr": "lr_alpha"}
VALUES = {("metric", "ours"): "dc"}


def renamed(value):
    "The same with fields and values as they are called today, however deep they are."
    if isinstance(value, list): return [renamed(v) for v in value]
    if not isinstance(value, dict): return value
    return {FIELDS.get(k, k): _value(k, v) for k, v in value.items()}


def _value(key, value):
    "A field's value as it is called today."
    if isinstance(value, str): return VALUES.get((key, value), value)
    return renamed(value)


def described(text):
    "A JSON text renamed; any other text as it is."
    try: before = json.loads(text)
    except ValueError: return text
    after = renamed(before)
    return text if after == before else json.dumps(after)


def migrate_json(path):
    "Rename in a JSON file; was there anything to rename?"
    before = json.loads(path.read_text(encoding="utf-8"))
    after = renamed(before)
    if after == before: return False
    path.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
    return True


def migrate_tensors(path):
    "Rename in what a safetensors file says about itself; was there anything to rename?"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    about = header.get("__metadata__", {})
    after = {key: described(text) for key, text in about.items()}
    if after == about: return False
    head = json.dumps({**header, "__metadata__": after}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[end:])
    return True


def migrate(store):
    "Rename in every file of a store; how many were changed."
    changed = sum(migrate_json(p) for p in sorted(store.rglob("*.json")))
    return changed + sum(migrate_tensors(p) for p in sorted(store.rglob("*.safetensors")))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT/"published"
    print(f"{migrate(folder)} files renamed in {folder}")
