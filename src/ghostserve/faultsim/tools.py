"""What is the same for many seeds and takes time to make: the backend, codes and their plans, models."""

from functools import cache

from ghostserve.codes import Backend, Code, make_backend, make_code
from ghostserve.faultsim.model import FakeModel

__all__ = ["Tools"]


class Tools:
    """Make it once a process. Nothing in it remembers a run."""

    def __init__(self) -> None:
        self.backend: Backend = make_backend()
        self.backend.warm_up()
        self.code = cache(self._code)
        self.model = cache(FakeModel)

    def _code(self, name: str, shards: int) -> Code:
        code = make_code(name, shards)
        assert code is not None
        return code
