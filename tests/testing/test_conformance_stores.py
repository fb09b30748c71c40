"""The stores of GhostServe under the suite that it publishes."""

from makers import InMemory, OnDisk

from ghostserve.testing.stores import StoreConformance


class TestParityStore(InMemory, StoreConformance):
    pass


class TestFileStore(OnDisk, StoreConformance):
    pass
