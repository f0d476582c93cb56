"""The architecture, read from the imports of the sources: nothing is imported or run here.

Imports go one way, `ir <- passes <- compiler <- fuzz`; `graphwright` may import all of them and none imports
it. Within a room they go one way between its sub-rooms, in the order of `SUB_ROOMS`. No modules import each other in a
circle, and no import hides in a function.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ir", "passes", "compiler", "fuzz", "graphwright")
OUTSIDE = ("tests", "benchmarks", "docs")

SUB_ROOMS = {
    "ir": ("text", "ops", "quant", "memory"),
    "passes": ("rewrite", "explain", "manager", "cleanup", "fold", "canonicalize", "fuse", "convert", "quant"),
    "compiler": (
        *("usercode", "emitted", "capture", "lower", "codegen", "equality"),
        *("targets", "explain", "page", "onnx", "runtime", "quant", "cli"),
    ),
    "fuzz": ("calls", "programs", "rules", "modules", "search", "campaign", "mutants"),
}
"""Room -> the folders in it, each below the next: a folder imports from those before it, never from one after it.

The modules beside them stand between: `ir.core` below all of them, `ir.verify` above.
"""

MAX_FILES = 15
CROWDED: dict[str, str] = {
    "ir": "what the text form, the operators and the verifier are made of, and what is made of these",
    "fuzz/corpus": "one file for each case",
}
"""Folders of more than `MAX_FILES` Python files (`__init__` not counted), each with the reason to be one folder."""

_TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

MAX_LINES = 450
LONG_FILES: dict[str, str] = {
    "tests/ir/broken.py": "one list: each invariant of the verifier, and a way to break it",
    "ir/core.py": "values, operations and graphs keep the use-def edges between them exact together",
}
"""Files of more than `MAX_LINES` lines, each with the reason to be one file."""


@attrs.frozen
class Import:
    """One import statement of a module of the project by another."""

    importer: str
    imported: str
    line: int
    in_function: bool
    for_types: bool
    """Under `if TYPE_CHECKING:`, so it names types and does not run."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources(*folders: str) -> dict[str, str]:
    """Path from the root -> text, of every Python file in the folders."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imports(files: Mapping[str, str]) -> list[Import]:
    """Every import of a room or an outside folder, resolved to a module of `files` where there is one."""
    modules = {module_name(path) for path in files}
    return [
        found
        for path, text in files.items()
        for found in _imports_below(ast.parse(text, path), path, modules, in_function=False, for_types=False)
    ]


def _imports_below(
    node: ast.AST, path: str, modules: set[str], *, in_function: bool, for_types: bool
) -> Iterator[Import]:
    for name in _imported_names(node, path, modules):
        if name.partition(".")[0] in ROOMS + OUTSIDE:
            yield Import(module_name(path), name, getattr(node, "lineno", 0), in_function, for_types)
    in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    typed = node.body if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPE_CHECKING else []
    for child in ast.iter_child_nodes(node):
        below = for_types or child in typed
        yield from _imports_below(child, path, modules, in_function=in_function, for_types=below)


def _imported_names(node: ast.AST, path: str, modules: set[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=base, names=names, level=level):
            if level:
                package = module_name(path).split(".")
                package = package[: len(package) - level + path.endswith("/__init__.py")]
                base = ".".join([*package, base] if base else package)
            members = (f"{base}.{alias.name}" for alias in names)
            return list(dict.fromkeys(member if member in modules else str(base) for member in members))
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            return [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        case _:
            return []


def wrong_way(found: list[Import]) -> list[str]:
    """Imports of a room by one below it, of the window by a room, and of the outside folders by either."""
    order = {room: rank for rank, room in enumerate(ROOMS + OUTSIDE)}
    messages = []
    for one in found:
        importer, imported = one.importer.partition(".")[0], one.imported.partition(".")[0]
        if importer not in OUTSIDE and order[imported] > order[importer]:
            messages.append(f"{one}: imports go one way, {' <- '.join(ROOMS)}")
    return messages


def part_of(module: str) -> str:
    """Return the part of a room that a module belongs to: a sub-room, or the module itself beside the sub-rooms."""
    room, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    return f"{room}.{folder}" if folder in SUB_ROOMS.get(room, ()) else module


def against_the_order(found: list[Import]) -> list[str]:
    """Sub-rooms that import from one above them in their room, directly or through modules beside the sub-rooms."""
    graph: dict[str, list[str]] = {}
    for one in found:
        importer, imported = part_of(one.importer), part_of(one.imported)
        graph.setdefault(importer, []).append(imported)
        graph.setdefault(imported, [])
    messages = []
    for room, folders in SUB_ROOMS.items():
        for rank, folder in enumerate(folders):
            below = f"{room}.{folder}"
            reached = set(_reachable(graph, below)) if below in graph else set()
            messages += [
                f"{below} depends on {room}.{above}: the order is {' <- '.join(folders)}"
                for above in folders[rank + 1 :]
                if f"{room}.{above}" in reached
            ]
    return messages


def without_a_place(files: Mapping[str, str]) -> list[str]:
    """Folders with code, directly in a room, that have no place in the order of its sub-rooms."""
    folders = {tuple(path.split("/")[:2]) for path in files if path.count("/") > 1 and path.split("/")[0] in SUB_ROOMS}
    return sorted(f"{room}/{name}" for room, name in folders if name not in (*SUB_ROOMS[room], "corpus"))


def hidden(found: list[Import]) -> list[str]:
    return [f"{one} inside a function" for one in found if one.in_function]


def cycles(found: list[Import]) -> list[list[str]]:
    """The sets of modules that import each other in a circle when they run, in functions too.

    Two modules may name each other's types (a weight is a value, and a value knows its weight); that import
    still has to go one way between rooms.
    """
    graph: dict[str, list[str]] = {}
    for one in found:
        if one.for_types:
            continue
        graph.setdefault(one.importer, []).append(one.imported)
        graph.setdefault(one.imported, [])
    reached = {module: _reachable(graph, module) for module in graph}
    groups = [[other for other in sorted(reached[one]) if one in reached[other]] for one in graph]
    return [list(group) for group in dict.fromkeys(tuple(group) for group in groups) if group]


def _reachable(graph: Mapping[str, list[str]], start: str) -> set[str]:
    """The modules that `start` imports, directly or through others; itself only where it is on a cycle."""
    seen: set[str] = set()
    pending = list(graph[start])
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            pending.extend(graph[module])
    return seen


@pytest.fixture(scope="module")
def project() -> list[Import]:
    files = sources(*ROOMS, *OUTSIDE)
    assert {path.partition("/")[0] for path in files} >= {
        "ir",
        "passes",
        "compiler",
        "fuzz",
        "graphwright",
        "tests",
    }
    return imports(files)


def test_imports_go_one_way(project: list[Import]) -> None:
    assert wrong_way(project) == []


def test_sub_rooms_have_an_order(project: list[Import]) -> None:
    assert against_the_order(project) == []
    assert without_a_place(sources(*ROOMS)) == []


def test_crowded_folders_have_a_reason() -> None:
    counts: dict[str, int] = {}
    for path in sources(*ROOMS, *OUTSIDE):
        folder, _, name = path.rpartition("/")
        counts[folder] = counts.get(folder, 0) + (name != "__init__.py")
    crowded = {folder: count for folder, count in counts.items() if count > MAX_FILES}
    assert sorted(crowded) == sorted(CROWDED), f"files in the crowded folders: {crowded}"
    assert all(CROWDED.values())


def test_no_import_hides_in_a_function(project: list[Import]) -> None:
    # a benchmark measures what an import costs, so there the process that measures imports when it is told to; the
    # window checks where the rooms lie before it loads them
    allowed = ("benchmarks.", "graphwright._rooms")
    assert hidden([one for one in project if not one.importer.startswith(allowed)]) == []


def test_no_import_cycles(project: list[Import]) -> None:
    assert cycles(project) == []


def test_long_files_have_a_reason() -> None:
    lengths = {path: text.count("\n") for path, text in sources(*ROOMS, *OUTSIDE).items()}
    long = {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert sorted(long) == sorted(LONG_FILES), f"lines of the long files: {long}"
    assert all(LONG_FILES.values())


# The checks themselves, on sources made up to break each rule.


@pytest.mark.parametrize(
    "statement",
    [
        "import passes",
        "import passes.rewrite.driver as d",
        "from passes import driver",
        "from passes.rewrite.driver import run",
        "from ..passes import driver",
        "import os, passes",
        "try:\n    import passes\nexcept ImportError:\n    pass",
        "class A:\n    import passes",
        "if TYPE_CHECKING:\n    from passes import driver",
        "import importlib\nimportlib.import_module('passes.rewrite.driver')",
        "__import__('passes')",
        "from graphwright import transform",
        "import tests.helpers",
    ],
)
def test_every_spelling_of_an_import_upwards_is_found(statement: str) -> None:
    files = {"ir/core.py": statement, "passes/rewrite/driver.py": "", "passes/__init__.py": ""}
    assert len(wrong_way(imports(files))) == 1


@pytest.mark.parametrize("statement", ["import ir", "from ir.core import Value", "from fuzz import strategies"])
def test_imports_downwards_and_from_outside_are_fine(statement: str) -> None:
    assert (
        wrong_way(imports({"fuzz/oracles.py": statement, "tests/test_a.py": f"import graphwright\n{statement}"})) == []
    )


def test_the_window_is_only_for_the_outside() -> None:
    files = {f"{room}/a.py": "import graphwright" for room in ("ir", "passes", "compiler", "fuzz", "tests", "docs")}
    assert [message.partition(".")[0] for message in wrong_way(imports(files))] == list(ROOMS[:4])


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("passes/fold/constants.py", "from passes.convert import pooling"),
        ("passes/fold/constants.py", "import passes.between"),
        ("passes/fold/__init__.py", "if TYPE_CHECKING:\n    from passes.convert.pooling import x"),
    ],
)
def test_imports_against_the_order_are_found(path: str, statement: str) -> None:
    files = {"passes/between.py": "import passes.convert.pooling", "passes/convert/pooling.py": "", path: statement}
    assert [message.partition(":")[0] for message in against_the_order(imports(files))] == [
        "passes.fold depends on passes.convert"
    ]
    files[path] = "import passes.below"
    files["passes/below.py"] = ""
    assert against_the_order(imports(files)) == []


def test_a_new_folder_needs_a_place_in_the_order() -> None:
    assert without_a_place({"passes/other/deep/a.py": "", "passes/fold/b.py": "", "fuzz/corpus/c.py": ""}) == [
        "passes/other"
    ]


@pytest.mark.parametrize("header", ["def f():", "async def f():", "class A:\n  def f(self):", "def f():\n  if True:"])
def test_an_import_in_a_function_is_found(header: str) -> None:
    indent = "  " * (header.count("\n") + 1)
    files = {"passes/a.py": f"import torch\n{header}\n{indent}from ir.core import Value", "ir/core.py": ""}
    assert hidden(imports(files)) == [f"passes.a:{header.count(chr(10)) + 3} imports ir.core inside a function"]
    assert hidden(imports({"passes/a.py": f"{header}\n{indent}import torch"})) == []


def test_cycles_are_found() -> None:
    files = {
        "ir/a.py": "from ir.b import x",
        "ir/b.py": "from ir import c",
        "ir/c.py": "def f():\n    import ir.a",
        "ir/above.py": "import ir.a",
        "ir/below.py": "",
        "passes/d.py": "import ir.a\nfrom passes import e",
        "passes/e.py": "from . import d",
        "passes/self.py": "import passes.self",
        "passes/between.py": "import ir.a\nimport passes.d",
    }
    assert cycles(imports(files)) == [["ir.a", "ir.b", "ir.c"], ["passes.d", "passes.e"], ["passes.self"]]


def test_a_module_that_imports_from_the_package_that_reexports_it_is_a_cycle() -> None:
    files = {
        "ir/__init__.py": "from ir.core import Value",
        "ir/core.py": "from ir import types, Value",
        "ir/types.py": "",
    }
    assert cycles(imports(files)) == [["ir", "ir.core"]]


def test_no_cycle_where_there_is_none() -> None:
    diamond = {
        "ir/a.py": "from ir import b, c",
        "ir/b.py": "import ir.d",
        "ir/c.py": "import ir.d",
        "ir/d.py": "",
    }
    assert cycles(imports(diamond)) == []


def test_imports_for_types_make_no_cycle_but_their_else_branch_does() -> None:
    files = {"ir/a.py": "import ir.b", "ir/b.py": "if TYPE_CHECKING:\n    import ir.a"}
    assert cycles(imports(files)) == []
    files["ir/b.py"] += "\nelse:\n    from ir import a"
    assert cycles(imports(files)) == [["ir.a", "ir.b"]]
