"""Measure the house: modules, lines, public names, import levels, long lines and lambdas.

    python tools/count.py [PROJECT]        # this project if none is named
"""
import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "data", "networks", "distillation", "evaluation", "reproduction")
WIDTH = 100


def modules(package):
    "Dotted name -> path of each module of a package, but for nbdev's index and the `__init__`s."
    found = {}
    for path in sorted(package.rglob("*.py")):
        if path.name in ("_modidx.py", "__init__.py"): continue
        found[".".join([package.name, *path.relative_to(package).with_suffix("").parts])] = path
    return found


def parsed(path):
    "The syntax tree of a file."
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def absolute(node, name):
    "What `from … import` refers to, as a dotted name, seen from the module called `name`."
    if not node.level: return node.module
    above = name.split(".")[:-node.level]
    return ".".join(above + ([node.module] if node.module else []))


def imported(tree, name):
    "Pairs (module, name) of all that a module imports, also inside functions; name may be None."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names: yield alias.name, None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names: yield absolute(node, name), alias.name


def import_graph(package):
    "Module -> the modules of the same package that it imports."
    known, graph = modules(package), {}
    for name, path in known.items():
        graph[name] = set()
        for module, what in imported(parsed(path), name):
            for target in (module, f"{module}.{what}"):
                if target in known and target != name: graph[name].add(target)
    return graph


def levels(graph):
    "Module -> its level: 1 if it imports none of them, or else one above the highest of these."
    level = {}

    def of(name, below):
        if name in below: raise ValueError("a circle of imports: " + " -> ".join([*below, name]))
        if name not in level:
            level[name] = 1 + max((of(n, (*below, name)) for n in sorted(graph[name])), default=0)
        return level[name]

    for name in graph: of(name, ())
    return level


def room(name):
    "The sub-package that a module is in, or ''."
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else ""


def inside(graph, chosen):
    "The part of an import graph that lies in one room."
    names = {n for n in graph if room(n) == chosen}
    return {n: graph[n] & names for n in names}


def upward(graph):
    "The imports, as (module, imported), that go from a room to a later one or to no room."
    def place(name): return ROOMS.index(room(name)) if room(name) in ROOMS else len(ROOMS)
    pairs = [(name, target) for name in graph for target in graph[name]]
    return sorted((a, b) for a, b in pairs if place(b) > place(a))


def private_imports(package):
    "Private names of other modules of the package that a module uses, as `module: other._name`."
    known, found = modules(package), []
    for name, path in known.items():
        tree = parsed(path)
        bound = {}  # what a module is called here -> its dotted name
        for module, what in imported(tree, name):
            if what and what.startswith("_") and not what.startswith("__") and module in known:
                found.append(f"{name}: {module}.{what}")
            if what and f"{module}.{what}" in known: bound[what] = f"{module}.{what}"
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name): continue
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.value.id in bound:
                found.append(f"{name}: {bound[node.value.id]}.{node.attr}")
    return sorted(found)


def public_names(path):
    "What a module's `__all__` lists."
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            try: return ast.literal_eval(node.value)
            except ValueError: return []
    return []


def notebooks(folder):
    "The notebooks below a folder, in order."
    def hidden(path): return any(part[0] in "._" for part in path.relative_to(folder).parts)
    return [p for p in sorted(folder.rglob("*.ipynb")) if not hidden(p)]


def code_cells(path):
    "The sources of a notebook's code cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def long_lines(text):
    "The numbers of the lines that are longer than they may be; nbdev's head of a module is not ours."
    head, mark, _ = text.partition("\n# %% ../")
    first = head.count("\n") + 1 if mark else 0
    return [i for i, line in enumerate(text.splitlines(), 1) if i > first and len(line) > WIDTH]


def lines_of(path):
    "The lines of a file."
    return path.read_text(encoding="utf-8").splitlines()


def lambdas(path):
    "How many lambdas a module has."
    return sum(isinstance(node, ast.Lambda) for node in ast.walk(parsed(path)))


def count(project):
    "What is measured -> its value."
    package = project/"trustdd"
    known, graph = modules(package), import_graph(package)
    graph.pop(f"{package.name}.__main__", None)  # it only calls the command line
    sizes = {name: len(lines_of(path)) for name, path in known.items()}
    lines = sum(sizes.values())
    chapters = notebooks(project/"nbs")
    cells = [source for path in chapters for source in code_cells(path)]
    long_cells = sum(len(long_lines(source)) for source in cells)
    long_code = [i for path in known.values() for i in long_lines(path.read_text(encoding="utf-8"))]
    largest = max(sizes, key=sizes.get)
    got = {
        "modules": sum(not name.endswith("__main__") for name in known),
        "lines, without the generated index": lines,
        "largest module": f"{sizes[largest]} ({largest})",
        "public names": sum(len(public_names(path)) for path in known.values()),
        "import levels": max(levels(graph).values()),
    }
    for r in ROOMS:
        part = inside(graph, r)
        if part: got[f"import levels inside {r}"] = max(levels(part).values())
    return got | {
        f"lines over {WIDTH} characters, package": f"{len(long_code)} ({len(long_code)/lines:.0%})",
        f"lines over {WIDTH} characters, notebooks": long_cells,
        "lambdas per 100 lines": round(100 * sum(map(lambdas, known.values())) / lines, 2),
        "notebooks": len(chapters),
    }


if __name__ == "__main__":
    measured = count(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    for what, value in measured.items(): print(f"{what:42} {value}")
