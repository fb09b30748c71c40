"""Traces: what is read is what stands there, bad lines are named, and a seed is a seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostserve.errors import ConfigError
from ghostserve.traces import Arrival, poisson, read_trace
from ghostserve.traces import read as reading

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.9799600,3180,8
2023-11-16 18:18:03.9799600,110,0
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 4000, "input_length": 10, "output_length": 490, "hash_ids": []}
{"timestamp": 2500, "input_length": 7, "output_length": 3}
"""


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.txt", "t"])
def test_azure(tmp_path: Path, name: str) -> None:
    expected = [Arrival(0.0, 4808, 10), Arrival(1.0, 3180, 8), Arrival(60.0, 110, 1)]
    assert read_trace(write(tmp_path, AZURE, name)) == expected


@pytest.mark.parametrize("name", ["t.jsonl", "t"])
def test_mooncake_sorted_by_time(tmp_path: Path, name: str) -> None:
    expected = [Arrival(0.0, 6758, 500), Arrival(1.5, 7, 3), Arrival(3.0, 10, 490)]
    assert read_trace(write(tmp_path, MOONCAKE, name)) == expected


def test_scales_and_limits(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE)
    assert read_trace(path, limit=2) == [Arrival(0.0, 4808, 10), Arrival(1.0, 3180, 8)]
    assert read_trace(path, scale_rate=2.0)[2].at_seconds == 30.0
    assert read_trace(path, scale_lengths=0.1) == [Arrival(0.0, 481, 1), Arrival(1.0, 318, 1), Arrival(60.0, 11, 1)]
    assert read_trace(path, max_tokens=16)[0] == Arrival(0.0, 8, 8)
    assert read_trace(path, max_tokens=1000)[0] == Arrival(0.0, 990, 10)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2023-11-16 18:17:04,1", "2 fields instead of 3"),
        ("yesterday,1,1", "yesterday"),
        ("2023-11-16 18:17:04,many,1", "many"),
        ("2023-11-16 18:17:04,0,1", "prompt of 0 tokens"),
        ("2023-11-16 18:17:04,1,-1", "output of -1 tokens"),
        ("2023-11-16 18:17:04,99999999999,1", "prompt of 99999999999 tokens"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path, AZURE + line + "\n")
    with pytest.raises(ConfigError, match=rf"trace\.csv:5: .*{said}.*allowed: "):
        read_trace(path)


@pytest.mark.parametrize("line", ["{", "[]", '{"timestamp": 1, "input_length": 1}', '{"timestamp": "a"}', "nonsense"])
def test_a_bad_json_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"t\.jsonl:4: .*allowed: .*input_length"):
        read_trace(write(tmp_path, MOONCAKE + line, "t.jsonl"))


def test_what_is_no_trace(tmp_path: Path) -> None:
    for text, name in (("hello\n", "t.txt"), ("", "t.csv"), (AZURE.splitlines()[0], "h.csv")):
        with pytest.raises(ConfigError, match=r"allowed: a CSV with the header"):
            read_trace(write(tmp_path, text, name))
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_trace(tmp_path)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"b\.csv:1: not UTF-8"):
        read_trace(tmp_path / "b.csv")


def test_long_lines_and_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + "9" * (reading.MAX_LINE_BYTES + 1))
    with pytest.raises(ConfigError, match=rf"trace\.csv:5: a line may have {reading.MAX_LINE_BYTES} bytes"):
        read_trace(path)
    with path.open("wb") as file:
        file.truncate(reading.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ConfigError, match=f"a trace may have {reading.MAX_FILE_BYTES}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit": 0}, "limit must be at least 1"),
        ({"scale_rate": 0.0}, "scale_rate must be a number above 0"),
        ({"scale_lengths": float("nan")}, "scale_lengths must be a number above 0"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_trace(write(tmp_path, AZURE), **settings)  # type: ignore[arg-type]


@given(st.integers(2, 5000), st.floats(0.01, 3.0))
def test_no_request_outgrows_the_context(tmp_path_factory: pytest.TempPathFactory, most: int, scale: float) -> None:
    path = write(tmp_path_factory.mktemp("t"), AZURE)
    for arrival in read_trace(path, max_tokens=most, scale_lengths=scale):
        assert arrival.prompt_tokens >= 1
        assert arrival.output_tokens >= 1
        assert arrival.prompt_tokens + arrival.output_tokens <= most


def test_poisson_is_its_seed() -> None:
    def draw(seed: int) -> list[Arrival]:
        return poisson(5.0, 4000, prompt=(10, 30), output=(1, 4), seed=seed)

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    arrivals = draw(7)
    gaps = np.diff([a.at_seconds for a in arrivals])
    # Exponential: mean and standard deviation are both 1/rate, here within 5 standard errors.
    assert abs(gaps.mean() - 0.2) < 5 * 0.2 / 4000**0.5
    assert abs(gaps.std() - 0.2) < 5 * 0.2 * (2 / 4000) ** 0.5
    assert {a.prompt_tokens for a in arrivals} == set(range(10, 31))
    assert {a.output_tokens for a in arrivals} == {1, 2, 3, 4}


def test_poisson_lengths_leave_times_alone() -> None:
    one = poisson(5.0, 50, prompt=(10, 30), output=(1, 4), seed=3)
    two = poisson(5.0, 50, prompt=(10, 90), output=(1, 4), seed=3)
    assert [(a.at_seconds, a.output_tokens) for a in one] == [(a.at_seconds, a.output_tokens) for a in two]
    assert one != two


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": 0.0}, "rate must be a number above 0"),
        ({"count": -1}, "count must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"prompt": (3, 2)}, r"prompt must be .*not \(3, 2\)"),
        ({"output": (0, 2)}, r"output must be .*not \(0, 2\)"),
    ],
)
def test_poisson_refuses(changes: dict[str, object], said: str) -> None:
    good: dict[str, object] = {"rate": 1.0, "count": 1, "prompt": (1, 2), "output": (1, 2), "seed": 0}
    with pytest.raises(ConfigError, match=said):
        poisson(**good | changes)  # type: ignore[arg-type]
