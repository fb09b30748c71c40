import pytest

from ghostserve.faultsim.tools import Tools


@pytest.fixture(scope="session")
def tools():
    return Tools()
