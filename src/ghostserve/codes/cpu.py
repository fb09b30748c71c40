"""The fast CPU backend: numba kernels over flattened plans."""

from collections.abc import Sequence
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ghostserve.codes import cpu_kernels as kernels
from ghostserve.codes.base import Plan, Step, stripe_bytes
from ghostserve.codes.checksum import SEED, weights
from ghostserve.codes.cpu_program import AffineProgram, HornerProgram, affine_program, horner_program
from ghostserve.errors import UnsupportedCodeError

__all__ = ["CpuBackend"]

Bytes = NDArray[np.uint8]
_KEPT_PROGRAMS = 64
_PADDED_BYTES = 1 << 20  # of copies at a time: they stay in L2


class CpuBackend:
    """Runs plans in the calling thread, without the GIL.

    `method` is how products in GF(2^8) are made: "affine" (one GFNI instruction per 64 bytes), "horner"
    (shifts and xors, any CPU) or "auto". Both give the same bytes.
    """

    name = "cpu"

    def __init__(self, method: Literal["auto", "affine", "horner"] = "auto") -> None:
        if method not in ("auto", "affine", "horner"):
            raise UnsupportedCodeError(f"no method {method!r}; there are auto, affine and horner")
        if method == "affine" and not kernels.has_affine():
            raise UnsupportedCodeError("method 'affine' needs a CPU with GFNI and AVX-512; use auto or horner")
        self.method = ("affine" if kernels.has_affine() else "horner") if method == "auto" else method
        self._programs: dict[int, tuple[Plan, AffineProgram | HornerProgram]] = {}
        self._lock = Lock()

    def run(self, plan: Plan, inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
        """See `Backend.run`."""
        slots, slot_bytes = _check(plan, inputs, outputs)
        if not slots or not plan.steps:
            return
        walk = _walk(slot_bytes, plan.rows)
        if walk is None:
            self._run_copies(plan, inputs, outputs)
        else:
            self._run_kernel(plan, (*inputs, *outputs), slots, walk)

    def checksums(self, data: Bytes) -> NDArray[np.uint64]:
        """See `Backend.checksums`."""
        slots, slot_bytes = _shape("data", data)
        sums = np.empty(slots, np.uint64)
        base, stride = data.__array_interface__["data"][0], data.strides[0]
        kernels.sum_words(base, stride, slot_bytes, weights(slot_bytes), np.uint64(SEED), sums)
        return sums

    def warm_up(self, *, rows: int = 1, slot_bytes: int = 8) -> None:
        """See `Backend.warm_up`. Takes some seconds the first time, then loads from numba's disk cache."""
        data = np.zeros((1, slot_bytes), np.uint8)
        self.run(Plan((0,), (1,), rows, (Step(rows, ((0, 2),)),)), [data], [data.copy()])
        self.checksums(data)

    def _run_kernel(self, plan: Plan, arrays: Sequence[Bytes], slots: int, walk: kernels.Walk) -> None:
        bases = np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
        strides = np.array([array.strides[0] for array in arrays], np.int64)
        program = self._program(plan)
        kernel = kernels.run_affine if isinstance(program, AffineProgram) else kernels.run_horner
        kernel(bases, strides, slots, walk, *program)

    def _run_copies(self, plan: Plan, inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
        """Symbols shorter than a kernel's window, or in stripes too short for it: some slots at a time, padded
        copies whose symbols lie one after the other."""
        slots, slot_bytes = outputs[0].shape
        stripe, width = stripe_bytes(slot_bytes, plan.rows), max(kernels.WIDTH, slot_bytes // plan.rows)
        walk = _one_piece(plan.rows, width)
        batch = max(1, _PADDED_BYTES // (plan.rows * width * (len(inputs) + len(outputs))))
        stretches = slot_bytes // (plan.rows * stripe)
        for first in range(0, slots, batch):
            part = slice(first, min(first + batch, slots))
            count = part.stop - part.start
            copies = [np.zeros((count, plan.rows, width), np.uint8) for _ in (*inputs, *outputs)]
            # Views of the copies in the order of a slot's bytes: stretch, row, byte of the stripe.
            symbols = [copy[:, :, : stretches * stripe].reshape(count, plan.rows, stretches, stripe) for copy in copies]
            for shard, symbol in zip(inputs, symbols, strict=False):
                symbol[...] = shard[part].reshape(count, stretches, plan.rows, stripe).transpose(0, 2, 1, 3)
            self._run_kernel(plan, [copy.reshape(count, plan.rows * width) for copy in copies], count, walk)
            for shard, symbol in zip(outputs, symbols[len(inputs) :], strict=True):
                shard[part] = symbol.transpose(0, 2, 1, 3).reshape(count, slot_bytes)

    def _program(self, plan: Plan) -> AffineProgram | HornerProgram:
        # By identity: hashing a plan of many steps would cost more than running it. The plan is kept with its
        # program, so its id can't be given to another one.
        with self._lock:
            found = self._programs.get(id(plan))
            if found is None:
                program = affine_program(plan) if self.method == "affine" else horner_program(plan)
                found = self._programs[id(plan)] = plan, program
                if len(self._programs) > _KEPT_PROGRAMS:
                    del self._programs[next(iter(self._programs))]
        return found[1]


def _walk(slot_bytes: int, rows: int) -> kernels.Walk | None:
    """How a kernel goes through slots where they lie; None if it can't."""
    symbol, stripe = slot_bytes // rows, stripe_bytes(slot_bytes, rows)
    if symbol < kernels.WIDTH or stripe < kernels.SHORTEST_STRIPE:
        return None
    if rows == 1:
        return _one_piece(rows, symbol)
    window, pitch = kernels.WIDTH // stripe, rows * stripe
    gaps = tuple(pitch << i for i in range(window.bit_length() - 1))
    return kernels.Walk(rows, stripe, symbol // stripe, window, pitch, gaps)


def _one_piece(rows: int, symbol: int) -> kernels.Walk:
    """Symbols of so many bytes, each in one piece, one after the other."""
    return kernels.Walk(rows, symbol, symbol, kernels.WIDTH, 1, ())


def _check(plan: Plan, inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> tuple[int, int]:
    if (len(inputs), len(outputs)) != (len(plan.inputs), len(plan.outputs)):
        raise UnsupportedCodeError(
            f"the plan reads {len(plan.inputs)} shards and writes {len(plan.outputs)},"
            f" but {len(inputs)} inputs and {len(outputs)} outputs were given"
        )
    arrays = (*inputs, *outputs)
    shapes = {_shape("shard", array) for array in arrays}
    if len(shapes) > 1:
        raise UnsupportedCodeError(f"all shards must have one shape, not {sorted(shapes)}")
    if not all(output.flags.writeable for output in outputs):
        raise UnsupportedCodeError("an output array is read-only; outputs must be writeable")
    slots, slot_bytes = shapes.pop() if shapes else (0, plan.rows)
    if slot_bytes % plan.rows:
        raise UnsupportedCodeError(
            f"a slot of {slot_bytes} bytes can't be cut into {plan.rows} equal rows:"
            f" its bytes must be a multiple of {plan.rows}"
        )
    return slots, slot_bytes


def _shape(what: str, array: Bytes) -> tuple[int, int]:
    if array.dtype != np.uint8 or array.ndim != 2 or array.shape[1] < 1:
        raise UnsupportedCodeError(f"{what} must be uint8 (slots, bytes >= 1), not {array.dtype} {tuple(array.shape)}")
    if array.size and array.shape[1] > 1 and array.strides[1] != 1:
        raise UnsupportedCodeError(
            f"{what} must be contiguous along the bytes of a slot (stride 1), not stride {array.strides[1]}"
        )
    return array.shape[0], array.shape[1]
