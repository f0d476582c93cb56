"""All caches can be cleared, since one helper makes them."""

from __future__ import annotations

import ast

from ir.caches import Cache, WeakCache, cached, forget
from tests.test_layout import ROOMS, sources


def test_all_that_is_kept_is_forgotten() -> None:
    class Key:
        pass

    asked: list[int] = []

    @cached(2)
    def double(x: int) -> int:
        asked.append(x)
        return 2 * x

    table: Cache[str, int] = Cache()
    weak: WeakCache[Key, int] = WeakCache()
    key = Key()
    table["a"], weak[key] = 1, 2
    assert [double(x) for x in (1, 1, 2, 3, 1)] == [2, 2, 4, 6, 2]
    assert asked == [1, 2, 3, 1]
    forget()
    assert not table and not weak
    assert double(1) == 2 and asked[-1] == 1 and len(asked) == 5


def test_objects_are_let_go() -> None:
    class Key:
        pass

    weak: WeakCache[Key, int] = WeakCache()
    weak[Key()] = 1
    assert not weak


def test_nothing_is_kept_otherwise() -> None:
    """No functools caches or weak tables: a mutant would see results of other code."""
    found = []
    for path, text in sources(*ROOMS).items():
        if path == "ir/caches.py" or path.startswith("fuzz/corpus/"):
            continue
        for node in ast.walk(ast.parse(text)):
            decorators = getattr(node, "decorator_list", ())
            names = [ast.unparse(d.func if isinstance(d, ast.Call) else d) for d in decorators]
            found += [f"{path}: @{n}" for n in names if n.split(".")[-1] in ("cache", "lru_cache")]
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                value = ast.unparse(statement.value)
                found += [f"{path}: {value}"] if value == "WeakKeyDictionary()" else []
    assert found == []
