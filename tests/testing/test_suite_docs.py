"""What docs/testing.md shows is run as it stands there."""

import re
from pathlib import Path

import pytest

from ghostserve.codes import make_backend
from ghostserve.parity import paging

pytest_plugins = ["pytester"]
PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """NumPy's and numba's modules are here before an inner run forgets what it imported: they can't be loaded twice."""
    make_backend().warm_up()
    paging.warm_up()


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", examples(), ids=lambda text: re.findall(r"class (\w+)", text)[-1])
def test_the_example_passes(example: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(example)
    result = pytester.runpytest_inprocess("-p", "no:schemathesis", "-p", "no:cacheprovider")
    found = result.parseoutcomes()
    assert found.get("passed", 0) >= 1
    assert set(found) <= {"passed", "skipped"}, found


def test_an_example_that_breaks_a_promise_fails(pytester: pytest.Pytester) -> None:
    """The twin: pytest finds the inherited tests, and one that fails is told."""
    (code,) = (text for text in examples() if "TestMyCode" in text)
    pytester.makepyfile(code.replace("refused = ((0, 1), (3, 2))", "refused = ((2, 1),)"))
    result = pytester.runpytest_inprocess("-p", "no:schemathesis", "-p", "no:cacheprovider")
    assert result.parseoutcomes()["failed"] == 1
