"""The codes of GhostServe under the suite that it publishes."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import Code, CopyCode, RdpCode, ReedSolomonCode, XorCode
from ghostserve.codes.reference import naive_parity
from ghostserve.testing.codes import CodeConformance


class Defined(CodeConformance):
    def definition(self, code: Code, data: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.uint8]]:
        return naive_parity(code, data)


class TestXor(Defined):
    shapes = ((1, 1), (2, 1), (5, 1), (8, 1))
    refused = ((0, 1), (3, 2), (3, 0))

    def make_code(self, n: int, k: int) -> Code:
        return XorCode(n, k)


class TestRdp(Defined):
    shapes = ((1, 2), (3, 2), (4, 2), (5, 2), (8, 2))
    refused = ((0, 2), (257, 2), (4, 1), (4, 3))

    def make_code(self, n: int, k: int) -> Code:
        return RdpCode(n, k)


class TestReedSolomon(Defined):
    shapes = ((1, 1), (1, 3), (4, 2), (5, 3), (8, 2), (40, 5))
    refused = ((0, 1), (3, 0), (254, 3))

    def make_code(self, n: int, k: int) -> Code:
        return ReedSolomonCode(n, k)


class TestCopy(Defined):
    shapes = ((1, 1), (2, 2), (4, 4))
    refused = ((0, 0), (3, 2))

    def make_code(self, n: int, k: int) -> Code:
        return CopyCode(n, k)

    def survives(self, code: Code, lost: Collection[int]) -> bool:
        return all(not {shard, shard + code.n} <= set(lost) for shard in range(code.n))
