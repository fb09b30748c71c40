"""Every named failpoint of the worker, and a death there. A point that is added to the worker must get a row."""

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
from scene import Moment, Stage, decoding, running

from ghostserve.checkpoint import encoding
from ghostserve.engine import scrubbing, worker
from ghostserve.parity import store

RANKS = 3


class Row(NamedTuple):
    """Where a worker dies. `second`: rank 0 was killed before, and this is a death in its recovery."""

    rank: int
    ranks: tuple[int, ...]
    """Everybody who can die there; -1 has no rank yet."""
    second: bool
    moment: Moment = decoding(6)
    tokens: int = 20


TABLE = {
    "step.begin": Row(1, (0, 1, 2), second=False),
    "step.end": Row(0, (0, 1, 2), second=False),
    "flush.begin": Row(2, (0, 1, 2), second=False),
    "flush.encoded": Row(1, (0, 1, 2), second=False),
    "flush.cleared": Row(2, (0, 1, 2), second=False),
    "flush.payload": Row(0, (0, 1, 2), second=False),
    "flush.record": Row(1, (0, 1, 2), second=False),
    "flush.committed": Row(0, (0, 1, 2), second=False),
    "flush.acked": Row(2, (0, 1, 2), second=False),
    "scrub.begin": Row(1, (0, 1, 2), second=False, tokens=80),
    "scrub.end": Row(2, (0, 1, 2), second=False, tokens=80),
    "release.begin": Row(2, (1, 2), second=True),
    "release.end": Row(1, (1, 2), second=True),
    "load.begin": Row(-1, (-1,), second=True),
    "load.end": Row(0, (0,), second=True),
    "join.begin": Row(2, (0, 1, 2), second=True),
    "join.end": Row(1, (0, 1, 2), second=True),
    "rebuild.begin": Row(0, (0,), second=True),
    "rebuild.end": Row(0, (0,), second=True),
    "recompute.begin": Row(1, (0, 1, 2), second=True),
    "recompute.end": Row(2, (0, 1, 2), second=True),
}


@pytest.fixture(scope="module")
def stage(llama_3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("points")
    settings = {"model": llama_3, "tensor_parallel_size": RANKS, "parity": "rs:2", "recovery": "recompute"}
    settings["scrub_rate"] = 1 << 30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrubbing, "PERIOD", 0.01)  # so that each rank has its turn in a short stream
        with running(folder, **settings) as stage:
            yield stage


def play(stage: Stage, name: str, rank: int, action: str = "kill") -> None:
    row = TABLE[name]
    scene = stage.scene()
    scene.stream(4, prompt=40, tokens=row.tokens)
    scene.when(row.moment).arm(f"{name}[{rank}]", action)
    if row.second:
        scene.when(row.moment).kill(0)
    scene.finish()  # fails unless the point was hit
    lost = {r for record in scene.recoveries for r in record.lost_ranks}
    assert lost == ({0} if row.second else set()) | ({rank} - {-1})
    assert scene.bytes_wiped > 0
    assert sum(record.recomputed_requests for record in scene.recoveries) == 0
    scene.assert_undisturbed()


@pytest.mark.parametrize("name", TABLE)
def test_a_death_at_every_point(stage: Stage, name: str) -> None:
    play(stage, name, TABLE[name].rank)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["kill", "raise"])
@pytest.mark.parametrize(("name", "rank"), [(name, rank) for name, row in TABLE.items() for rank in row.ranks])
def test_every_rank_at_every_point(stage: Stage, name: str, rank: int, action: str) -> None:
    play(stage, name, rank, action)


def calls(module: ModuleType, function: str) -> Iterator[ast.expr]:
    """The first argument of every call of a function or method of this name."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == function:
                yield node.args[0]


def points() -> set[str]:
    """What the worker's source names; `flush.{stage}` stands for each stage that an encode or a store tells of."""
    found = set()
    for argument in calls(worker, "hit"):
        if isinstance(argument, ast.Constant):
            found.add(str(argument.value))
        else:
            assert ast.unparse(argument) == "f'flush.{stage}'", f"teach this test about {ast.unparse(argument)}"
            stages = [*calls(encoding, "on_stage"), *calls(store, "on_stage")]
            found |= {f"flush.{ast.literal_eval(stage)}" for stage in stages}
    return found


def test_every_point_has_a_row() -> None:
    assert points() == set(TABLE)
    assert all(row.rank in row.ranks for row in TABLE.values())


def test_a_point_without_a_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(worker)
    extended = source + "\n\ndef more(points):\n    points.hit('step.middle', 0)\n"
    monkeypatch.setattr(inspect, "getsource", lambda module: extended if module is worker else "")
    assert points() - set(TABLE) == {"step.middle"}
