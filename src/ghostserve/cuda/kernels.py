"""Plans as kernels over a paged cache: shards are read and written in place, checksums are taken in the same pass."""

import hashlib
import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from ghostserve.codes.base import LONGEST_STRIPE, Plan
from ghostserve.codes.checksum import weights
from ghostserve.cuda import primitives, row_diagonal
from ghostserve.cuda.lowering import lower, simplest
from ghostserve.cuda.shards import ALIGNMENT, MAX_UNIT_BYTES, WORD, FlatShard, PagedShard, Units
from ghostserve.cuda.writer import Addressing
from ghostserve.errors import UnsupportedCodeError
from ghostserve.parity.geometry import CacheLayout

__all__ = ["Bound", "Kernels", "Tile"]

Shard = PagedShard | FlatShard


@dataclass(frozen=True)
class Tile:
    """What one thread block works on at a time: `words` 4-byte words of each shard, by `warps` warps.

    `deepest`: at most so many columns of units one after the other, before their checksums are added up. `registers`:
    at most so many a thread, so that more threads are resident; None: what was measured to be best. A code with several
    symbols a slot has a warp for `symbol_words` of each of them: what is more than its threads have registers for.
    """

    words: int = 512
    warps: int = 4
    deepest: int = 4
    symbol_words: int = LONGEST_STRIPE // WORD
    registers: int | None = None

    def words_of(self, symbols: int) -> int:
        """Words of each symbol, of a code with so many symbols a slot."""
        return self.words if symbols == 1 else self.symbol_words

    def warps_of(self, symbols: int) -> int:
        """Warps of a thread block. With one, threads exchange their sums without a barrier."""
        return self.warps if symbols == 1 else 1

    def options(self, plan: Plan) -> dict[str, int]:
        """Triton's options for the kernel of `plan`."""
        registers = self.registers
        # Left to itself the compiler takes more than it needs. Many inputs side by side do need them: no limit there.
        if registers is None and plan.rows > 1:
            registers = 96
        elif registers is None and len(plan.inputs) <= 10:
            # A rebuild's coefficients are anything, an encode's first parity shard is a plain sum: it overlaps more.
            encodes = max(plan.inputs) < min(plan.outputs)
            registers = {1: 96, 2: 112 if encodes else 96}.get(len(plan.outputs), 128)
        return {"num_warps": self.warps_of(plan.rows), **({} if registers is None else {"maxnreg": registers})}


@dataclass(frozen=True)
class _Program:
    """A plan's kernel for one way of addressing."""

    plan: Plan
    kernel: Any
    symbols: int
    visits: torch.Tensor
    units: Units
    addressing: Addressing
    checksums: bool
    columns: int
    options: dict[str, int]


class Kernels:
    """All kernels of one cache layout on one device. Not thread-safe: one for each thread that launches."""

    def __init__(self, layout: CacheLayout, device: torch.device, tile: Tile | None = None) -> None:
        """`device`: a CUDA device, or the CPU under Triton's interpreter (TRITON_INTERPRET=1)."""
        self.layout, self.device = layout, device
        self.tile = tile or Tile()
        # All addresses are passed as distances from here: Triton sees one pointer, of a known type and alignment.
        self.anchor = torch.zeros(64, dtype=torch.uint32, device=device)
        self.weights = _upload(weights(layout.slot_bytes).astype(np.uint32), device)
        self.processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        self._programs: dict[tuple[Any, ...], _Program] = {}

    def bind(self, plan: Plan, shards: Sequence[Shard], *, checksums: bool = True) -> "Bound":
        """The plan over these shards (inputs, then outputs, in the plan's order), ready to be launched again and again.

        Raises `UnsupportedCodeError` for shards or a layout that are not aligned, or plans that have no kernel.
        """
        if len(shards) != len(plan.inputs) + len(plan.outputs):
            raise UnsupportedCodeError(
                f"the plan reads {len(plan.inputs)} shards and writes {len(plan.outputs)}, {len(shards)} were given"
            )
        return Bound(self, self._program(plan, shards, checksums), shards)

    def warm_up(self, plan: Plan, paged: Sequence[bool], *, checksums: bool = True) -> None:
        """Compile the kernel (or load it from Triton's cache on disk) now, for shards in arenas."""
        address = self.anchor.data_ptr() + -self.anchor.data_ptr() % ALIGNMENT
        arena = PagedShard.of_arena(self.layout, address)
        shards: list[Shard] = [arena if is_paged else FlatShard(address, ALIGNMENT) for is_paged in paged]
        nothing = torch.zeros((1, 3), dtype=torch.int32, device=self.device)
        sums = torch.zeros((1, len(shards)), dtype=torch.int64, device=self.device)
        self.bind(plan, shards, checksums=checksums).launch(nothing, 0, sums)

    def _program(self, plan: Plan, shards: Sequence[Shard], checksums: bool) -> _Program:
        units = self._units(simplest(plan).rows)
        addressing = _addressing(units, shards, simplest(plan).rows)
        # By identity, as hashing a plan of many steps is slow. The plan is kept with its program: its id stays its own.
        key = (id(plan), addressing, checksums)
        if key not in self._programs:
            simple = simplest(plan)
            kernel = _compile(lower(simple, addressing, checksums=checksums))
            columns = units.count // simple.rows
            self._programs[key] = _Program(
                plan,
                kernel,
                simple.rows,
                _upload(_visits(simple, addressing.paged), self.device),
                units,
                addressing,
                checksums,
                columns,
                self.tile.options(simple),
            )
        return self._programs[key]

    @cache  # noqa: B019 - a handful of entries, and they live as long as the kernels
    def _units(self, rows: int) -> Units:
        return Units(self.layout, rows, max(ALIGNMENT, min(MAX_UNIT_BYTES, self.tile.words_of(rows) * WORD)))


class Bound:
    """A plan's kernel with the addresses of its shards."""

    def __init__(self, kernels: Kernels, program: _Program, shards: Sequence[Shard]) -> None:
        self._kernels, self._program = kernels, program
        units, device = program.units, kernels.device
        found = np.stack([units.addresses(shard) for shard in shards])
        distances = found - found[:, :1]
        paged = program.addressing.paged
        if program.addressing.common:
            distances = distances[paged.index(True) :][:1] if any(paged) else distances[:0]
        strides = [shard.row_stride if isinstance(shard, FlatShard) else 0 for shard in shards]
        self._step = _runs(units, found[paged.index(True)], program.symbols)[1] or 0 if any(paged) else 0
        self._bases = _words(found[:, 0] - kernels.anchor.data_ptr(), device)
        self._strides = _words(np.array(strides, dtype=np.int64), device)
        self._table = _words(np.concatenate([distances, [units.block_stride], [units.slot_stride]]), device)
        # What every launch is given first, and its addresses.
        self._tables = (kernels.anchor, self._bases, self._strides, self._table, program.visits)
        self._addresses = tuple(tensor.data_ptr() for tensor in self._tables)
        self._weights = kernels.weights.data_ptr()
        self._unit_words = units.nbytes // WORD
        tile = kernels.tile
        self._slots = max(1, tile.words_of(program.symbols) // self._unit_words)
        # Words that a thread loads at a time, side by side.
        self._group = max(
            1, min(ALIGNMENT // WORD, self._slots * self._unit_words // (32 * tile.warps_of(program.symbols)))
        )
        # Without checksums the kernel never touches this.
        self._no_sums = torch.zeros(1, dtype=torch.int64, device=device)
        self._constants = {
            "SYMBOLS": program.symbols,
            "PER": units.per_stripe,
            "SLOTS": self._slots,
            "WORDS": self._unit_words,
            "GROUP": self._group,
        }
        self._compiled: Any = None
        """What Triton made of the kernel for these arguments: looking it up costs more than launching it."""

    def launch(
        self, index: torch.Tensor, count: int, sums: torch.Tensor | None = None, *, programs: int | None = None
    ) -> None:
        """Run over the first `count` slots of `index`, int32 (>= count, 3): block, slot, row; on the current stream.

        `sums`, int64, contiguous, at least count * shards, zeroed before: gets the checksums of every shard, inputs
        then outputs, slot by slot; needed unless bound without. `programs`: at most so many thread blocks, so that the
        rest of the device is left to others. Slots, blocks and rows are not checked. Outputs must overlap neither
        inputs nor each other.
        """
        if self._program.checksums and sums is None:
            raise ValueError("this kernel takes checksums: it needs sums, int64 (slots, shards)")
        columns = self._program.columns
        slot_tiles = max(1, -(-count // self._slots))
        per_tile = self._per_tile(slot_tiles, columns)
        tiles = slot_tiles * -(-columns // per_tile)
        sums = self._no_sums if sums is None else sums
        grid = min(tiles, programs or tiles)
        # Triton compiles for how arguments are aligned; only these two change from call to call.
        aligned = (index.data_ptr() | sums.data_ptr()) % ALIGNMENT == 0
        if aligned and self._compiled is not None:
            # By address: asking ten tensors for theirs takes as long as the launch.
            self._compiled[(grid, 1, 1)](
                *self._addresses,
                index.data_ptr(),
                self._weights,
                sums.data_ptr(),
                count,
                columns,
                per_tile,
                self._step,
                *self._constants.values(),
            )
            return
        compiled = self._program.kernel[(grid,)](
            *self._tables,
            index,
            self._kernels.weights,
            sums,
            count,
            columns,
            per_tile,
            self._step,
            **self._constants,
            **self._program.options,
        )
        if aligned:
            self._compiled = compiled  # nothing under the interpreter

    def _per_tile(self, slot_tiles: int, columns: int) -> int:
        """As many columns a tile as leave enough tiles to fill the device some times over.

        One where a column is all symbols of a slot: neighbours are then read at the same time by other thread blocks.
        """
        if self._program.symbols > 1:
            return 1
        enough = 8 * self._kernels.processors
        return max(1, min(self._kernels.tile.deepest, slot_tiles * columns // enough, columns))


def _addressing(units: Units, shards: Sequence[Shard], symbols: int) -> Addressing:
    paged = [shard for shard in shards if isinstance(shard, PagedShard)]
    found = [units.addresses(shard) for shard in paged]
    common = all(np.array_equal(each - each[0], found[0] - found[0][0]) for each in found)
    kinds = tuple(isinstance(shard, PagedShard) for shard in shards)
    if symbols == 1 or not found:
        return Addressing(kinds, common, units.uniform)
    runs = [_runs(units, each, symbols) for each in found]
    even = common and units.uniform and runs[0][1] is not None
    return Addressing(kinds, common, units.uniform, min(run for run, _ in runs), even)


def _visits(plan: Plan, paged: tuple[bool, ...]) -> NDArray[np.int32]:
    return np.zeros(1, np.int32) if plan.array is None or plan.rows == 1 else row_diagonal.visits(plan, paged)


def _runs(units: Units, addresses: NDArray[np.int64], symbols: int) -> tuple[int, int | None]:
    """How many symbols, a power of two, always lie side by side; words from one run of them to the next, if constant.

    `addresses`: of each unit, of a paged shard. A step of 0 where all symbols are one run; None also where kernels,
    which multiply it in 32 bits, would overflow.
    """
    stripes = addresses.reshape(-1, symbols, units.per_stripe)
    joined = np.diff(stripes, axis=1) == units.nbytes * units.per_stripe
    run = 1
    while run < symbols and joined[:, np.arange(symbols - 1) % (2 * run) != 2 * run - 1].all():
        run *= 2
    steps = np.diff(stripes[:, ::run], axis=1)
    if not steps.size:
        return run, 0
    step, farthest = int(steps[0, 0, 0]) // WORD, (symbols // run - 1) * abs(int(steps[0, 0, 0])) // WORD
    return run, step if (steps == steps[0, 0, 0]).all() and farthest < 1 << 31 else None


@lru_cache(maxsize=512)
def _compile(source: str) -> Any:
    """A Triton kernel from source text. Triton reads a kernel's source back: linecache is where Python looks it up."""
    filename = f"<ghostserve kernel {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"triton": triton, "tl": tl, "__name__": "ghostserve.cuda.kernels"}
    namespace.update({name: getattr(primitives, name) for name in primitives.__all__})
    exec(compile(source, filename, "exec"), namespace)  # our own text, made from numbers only
    kernel: Callable[..., Any] = namespace["run_plan"]
    return kernel


def _words(distances: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return _upload(distances // WORD, device)


def _upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
