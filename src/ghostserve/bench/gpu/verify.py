"""Are the device's bytes those of the CPU? Asked before anything is timed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes.backend import Backend
from ghostserve.codes.base import Plan
from ghostserve.codes.reference import run_reference
from ghostserve.errors import GhostServeError

__all__ = ["WrongBytesError", "check_plan", "check_sums"]

Bytes = NDArray[np.uint8]
_BY_THE_BOOK = 4  # slots that the slow reference computes too


class WrongBytesError(GhostServeError):
    """A benchmark found wrong bytes: nothing that it would have measured means anything."""


def check_plan(
    what: str, plan: Plan, inputs: Sequence[Bytes], outputs: Sequence[Bytes], backend: Backend, sums: NDArray[np.uint64]
) -> None:
    """Raise `WrongBytesError` unless `outputs` and `sums` are what `plan` gives for `inputs`.

    `inputs`, `outputs`: uint8 (S, slot_bytes) each; `sums`: uint64 (S, inputs + outputs), or (S, 0) if none were taken.
    """
    expected = [np.full_like(shard, 0x5A) for shard in outputs]
    backend.run(plan, inputs, expected)
    few = [shard[:_BY_THE_BOOK] for shard in inputs]
    for position, slow in enumerate(run_reference(plan, few)):
        _equal(f"{what}: the CPU backend's shard {plan.outputs[position]}", expected[position][:_BY_THE_BOOK], slow)
        _equal(f"{what}: shard {plan.outputs[position]}", outputs[position], expected[position])
    if sums.shape[1]:
        check_sums(what, [*inputs, *expected], sums, backend)


def check_sums(what: str, shards: Sequence[Bytes], sums: NDArray[np.uint64], backend: Backend) -> None:
    """Raise `WrongBytesError` unless column p of `sums`, uint64 (S, shards), has the checksums of shard p's slots."""
    for position, shard in enumerate(shards):
        right = backend.checksums(shard)
        if not np.array_equal(right, sums[:, position]):
            bad = int(np.flatnonzero(right != sums[:, position])[0])
            raise WrongBytesError(
                f"{what}: checksum of shard {position}, slot {bad} is {int(sums[bad, position]):#x},"
                f" not {int(right[bad]):#x}; {int((right != sums[:, position]).sum())} of {len(right)} are wrong"
            )


def _equal(what: str, found: Bytes, expected: Bytes) -> None:
    wrong = found != expected
    if wrong.any():
        slot, byte = (int(at[0]) for at in np.nonzero(wrong))
        raise WrongBytesError(
            f"{what} differs from the reference in {int(wrong.any(axis=1).sum())} of {len(found)} slots;"
            f" first at slot {slot}, byte {byte}: {int(found[slot, byte]):#04x}, not {int(expected[slot, byte]):#04x}"
        )
