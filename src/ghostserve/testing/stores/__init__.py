"""What every parity store promises, as tests to inherit."""

from ghostserve.testing.stores.commits import Commits
from ghostserve.testing.stores.deaths import Deaths
from ghostserve.testing.stores.devices import Devices
from ghostserve.testing.stores.epochs import Epochs
from ghostserve.testing.stores.refusals import Refusals

__all__ = ["StoreConformance"]


class StoreConformance(Commits, Epochs, Deaths, Devices, Refusals):
    """Subclass it as `class TestMyStore(StoreConformance)` and give `create` and `attach`."""
