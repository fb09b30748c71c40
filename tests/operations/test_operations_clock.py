"""The wall clock may jump: nothing that waits or measures looks at it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ghostserve

SOURCE = Path(ghostserve.__file__).parent
STAMPS = {"server/chat.py", "server/completions.py", "server/endpoints.py"}
"""Where it is sent to clients as `created`, and nothing else is done with it."""
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}


def readings(tree: ast.AST) -> Iterator[str]:
    """Calls of the wall clock: of `time`, and of datetime's classes; also under the names of a from-import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WALL:
            owner = node.func.value
            if isinstance(owner, ast.Name | ast.Attribute):
                name = owner.id if isinstance(owner, ast.Name) else owner.attr
                if name in ("time", "datetime", "date"):
                    yield f"{name}.{node.func.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"from time import {alias.name}" for alias in node.names if alias.name in WALL)


def test_the_wall_clock_is_only_a_stamp() -> None:
    found = {
        str(file.relative_to(SOURCE)): list(readings(ast.parse(file.read_text())))
        for file in sorted(SOURCE.rglob("*.py"))
    }
    assert len(found) > 200
    assert {name for name, calls in found.items() if calls} == STAMPS
    for name in STAMPS:
        assert found[name] == ["time.time"]
        text = (SOURCE / name).read_text()
        assert "created=int(time.time())" in text or "_created = int(time.time())" in text


@pytest.mark.parametrize(
    "code",
    ["time.time()", "datetime.now()", "datetime.datetime.utcnow()", "time.time_ns()", "from time import time"],
)
def test_a_reading_is_found(code: str) -> None:
    assert list(readings(ast.parse(code)))
    assert not list(readings(ast.parse("time.monotonic(); request.time(); started.now()")))
