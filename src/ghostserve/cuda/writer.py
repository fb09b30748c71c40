"""Writes a kernel's source: the loops, the addresses and the checksums that all kernels have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ghostserve.codes.base import Plan
from ghostserve.codes.checksum import SEED

__all__ = ["Addressing", "KernelWriter"]

_FEW = 4  # runs: eight registers

# SLOTS slots are worked on at a time, a column of units of each: WORDS words of every symbol. A stripe has PER units.
_HEAD = """\
@triton.jit(do_not_specialize=["count", "columns", "per_tile", "step"])
def run_plan(anchor, bases, strides, table, visits, index, weights, sums, count, columns, per_tile, step,
             SYMBOLS: tl.constexpr, PER: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr):
    words = tl.arange(0, WORDS)
    units = columns * SYMBOLS
    column_tiles = tl.cdiv(columns, per_tile)
    tiles = tl.cdiv(count, SLOTS) * column_tiles
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i = (tile // column_tiles) * SLOTS + tl.arange(0, SLOTS)
        live = i < count
        known = tl.minimum(i, count - 1)
        block = tl.load(index + 3 * known).to(tl.int64)
        slot = tl.load(index + 3 * known + 1).to(tl.int64)
        row = tl.load(index + 3 * known + 2).to(tl.int64)
        first = (tile % column_tiles) * per_tile
"""


@dataclass(frozen=True)
class Addressing:
    """How a kernel finds a unit; the special cases spare it look-ups in its table.

    `paged[p]`: is the shard at position p paged, or flat (token-major)? `common`: in all paged shards the units lie at
    the same distances from each other. `uniform`: all units have the same block and slot strides.

    For codes with several symbols a slot: so many symbols, a `run`, always lie side by side in a paged shard. `even`:
    `common` and `uniform`, and it is always as far from one run to the next, which is the kernel's argument `step`.
    """

    paged: tuple[bool, ...]
    common: bool
    uniform: bool
    run: int = 1
    even: bool = False


class KernelWriter:
    """Collects the lines of what happens in one column of units; `source` puts the loops around them.

    A place is where a shard is read or written. The kernel's table, in words: one row a position (one in all if
    `common`) with the distance of each unit from its position's base, then the block strides and the slot strides of
    the units.

    Position-wise kernels look all shards up before the loop over columns and hash them until its end. Kernels with
    several symbols a slot have no registers to spare for that: they `find` a shard each time they turn to it, and give
    its sum away at once (`add_part`).
    """

    def __init__(self, plan: Plan, addressing: Addressing, *, checksums: bool) -> None:
        self.addressing, self.checksums = addressing, checksums
        self.positions = len(plan.inputs) + len(plan.outputs)
        self.num_inputs = len(plan.inputs)
        self._one_symbol = plan.rows == 1
        self._width = 1 << (self.positions - 1).bit_length()
        self._rows = plan.rows
        self._twins: dict[int, int] = {}
        self._lines: list[str] = []
        self._indent = ""
        self._paged = False

    def add(self, *lines: str) -> None:
        """More lines."""
        self._lines += [self._indent + line for line in lines]

    @contextmanager
    def loop(self, head: str) -> Iterator[None]:
        """What is added meanwhile is in a loop."""
        self.add(f"{head}:")
        self._indent += "    "
        yield
        self._indent = self._indent[4:]

    # ---- one symbol a slot

    def place(self, name: str) -> None:
        """A place called `name`: the unit of this column."""
        self.add(f"unit_{name} = column")
        if any(self.addressing.paged):
            if not self.addressing.uniform:
                self.add(f"slots_{name} = {self._slots_at(f'unit_{name}')}")
            if self.addressing.common:
                self.add(f"apart_{name} = tl.load(table + unit_{name})")
        if self.checksums:
            self.add(f"m_{name} = tl.load(weights + unit_{name} * WORDS + words[None, :])")

    def load(self, position: int, value: str, place: str) -> None:
        """Read the unit of the shard at `position` into the variable `value`."""
        # Beyond the last slot the last one is read again, in vain: loads without a mask are shorter.
        self.add(f"{value} = tl.load({self._pointer(position, place)})")
        self._hash(position, value, place)

    def store(self, position: int, value: str, place: str, *, copy_of: int | None = None) -> None:
        """Write the variable `value` to the unit of the shard at `position`.

        `copy_of`: of which position it is a copy, unit for unit, so that its checksum need not be taken again.
        """
        self.add(f"tl.store({self._pointer(position, place)}, {value}, mask=live[:, None])")
        if copy_of is None:
            self._hash(position, value, place)
        else:
            self._twins[position] = self._twins.get(copy_of, copy_of)

    # ---- several symbols a slot

    def begin_symbols(self) -> None:
        """The first symbol's unit in this column; of every symbol its weights."""
        self.add("unit0 = (column // PER) * (SYMBOLS * PER) + column % PER")
        if self.checksums:
            self.add("mine = weights + unit0 * WORDS + words[None, :]")
            self.add(*(f"m{r} = tl.load(mine + {r} * PER * WORDS)" for r in range(self._rows)))
        if self._few_runs:
            runs = 1 if self.addressing.even else self._rows // self.addressing.run
            self.add(*(f"apart{k} = tl.load(table + unit0 + {k * self.addressing.run} * PER)" for k in range(runs)))

    def find(self, position: str, *, paged: bool) -> None:
        """From here on symbols are those of the shard at `position`, an expression; `paged`: its kind."""
        self._paged = paged
        self.add(f"q = {position}", f"base = {self._base('q', paged=paged)}")

    def load_symbol(self, symbol: int, *, mask: str = "", zeros: bool = False) -> str:
        """An expression: symbol `symbol`; where the expression `mask`, (SLOTS, 1), is false, zeros or anything."""
        options = (f", mask={mask}" if mask else "") + (", other=0" if zeros else "")
        return f"tl.load({self._symbol_at(symbol)}{options})"

    def store_symbol(self, symbol: int, value: str) -> str:
        """A statement."""
        return f"tl.store({self._symbol_at(symbol)}, {value}, mask=live[:, None])"

    def add_part(self, position: str, part: str) -> None:
        """Add `part`, uint64 (SLOTS, anything), to the checksum of the shard at `position`, an expression."""
        self.add(f"total += tl.where(shard == {position}, tl.sum({part}, 1)[:, None], 0).to(tl.int64)")

    # ---- all

    def source(self) -> str:
        """The whole kernel, called `run_plan`."""
        lines = [_HEAD.rstrip()]
        if self.addressing.uniform:
            lines.append(f"        slots = {self._slots_at('0')}")
        if self._one_symbol:
            paged = self.addressing.paged
            lines += [f"        base{p} = {self._base(str(p), paged=paged[p])}" for p in range(self.positions)]
        if self.checksums:
            lines.append(f"        shard = tl.arange(0, {self._width})[None, :]")
            empty = "tl.zeros([SLOTS, WORDS // GROUP], tl.uint64)"
            if self._one_symbol:
                lines += [f"        hash{p} = {empty}" for p in range(self.positions) if p not in self._twins]
            else:
                lines.append(f"        total = tl.zeros([SLOTS, {self._width}], tl.int64)")
        lines.append("        for column in range(first, tl.minimum(first + per_tile, columns)):")
        lines += [f"            {line}" for line in self._lines]
        if self.checksums:
            lines += [f"        {line}" for line in self._add_up()]
        return "\n".join(lines) + "\n"

    def _base(self, position: str, *, paged: bool) -> str:
        base = f"tl.load(bases + {position})"
        if not paged:
            return f"{base} + row * tl.load(strides + {position})"
        return f"{base} + slots" if self.addressing.uniform else base

    def _slots_at(self, unit: str) -> str:
        rows = 1 if self.addressing.common else self.positions
        block, slot = (f"tl.load(table + {rows + k} * units + {unit})" for k in range(2))
        return f"block * {block} + slot * {slot}"

    def _pointer(self, position: int, place: str) -> str:
        parts = [f"base{position}"]
        if not self.addressing.paged[position]:
            parts.append(f"unit_{place} * WORDS")
        else:
            if not self.addressing.uniform:
                parts.append(f"slots_{place}")
            look_up = f"tl.load(table + {position} * units + unit_{place})"
            parts.append(f"apart_{place}" if self.addressing.common else look_up)
        # The hint is what makes threads load 16 bytes at a time.
        self.add(f"at = tl.multiple_of({' + '.join(parts)}, 4)")
        return "anchor + at[:, None] + words[None, :]"

    def _symbol_at(self, symbol: int) -> str:
        """Where symbol `symbol` is. To be asked for one after the other: each run's pointer serves all its symbols."""
        run = self.addressing.run if self._paged else self._rows
        if symbol % run == 0:
            self._turn_to_run(symbol)
        return f"at + {symbol % run} * PER * WORDS"

    def _turn_to_run(self, first: int) -> None:
        how, unit = self.addressing, f"unit0 + {first} * PER"
        if self._paged and how.even and first:
            # From the first one on: the compiler spills where each comes from the one before.
            self.add(f"at = head + {first // how.run} * step")
            return
        if not self._paged:
            parts = ["unit0 * WORDS"]
        elif self._few_runs:
            parts = [f"apart{first // how.run}"]
        else:
            parts = [f"tl.load(table + {'' if how.common else 'q * units + '}{unit})"]
            if not how.uniform:
                parts.append(self._slots_at(unit))
        self.add(f"at = anchor + (base + {' + '.join(parts)})[:, None] + words[None, :]")
        if self._paged and how.even:
            self.add("head = at")

    @property
    def _few_runs(self) -> bool:
        """Is there room to keep where a column's runs are, for all shards?"""
        how = self.addressing
        return how.common and how.uniform and (how.even or self._rows // how.run <= _FEW)

    def _hash(self, position: int, value: str, place: str) -> None:
        if self.checksums:
            self.add(f"hash{position} = hash_words({value}, m_{place}, hash{position}, WORDS, GROUP)")

    def _add_up(self) -> Iterator[str]:
        """A tile's share of the checksums, of all shards in one atomic."""
        if self._one_symbol:
            yield from self._join()
        yield f"total += tl.where(first == 0, {SEED}, 0).to(tl.int64)"
        yield f"to = sums + i[:, None] * {self.positions} + shard"
        yield f'tl.atomic_add(to, total, mask=live[:, None] & (shard < {self.positions}), sem="relaxed")'

    def _join(self) -> Iterator[str]:
        """All shards' sums as one tensor, so that threads exchange them only once."""
        taken = [self._twins.get(p, p) for p in range(self.positions)]
        # What is more than there are positions is masked off in the end.
        names = [f"tl.sum(hash{taken[min(p, self.positions - 1)]}, 1)" for p in range(self._width)]
        depth = 0
        while len(names) > 1:
            # What is joined last becomes the innermost axis, so position p is paired with p + half.
            half = len(names) // 2
            for p in range(half):
                yield f"join{depth}_{p} = tl.join({names[p]}, {names[p + half]})"
            names = [f"join{depth}_{p}" for p in range(half)]
            depth += 1
        yield f"total = tl.reshape({names[0]}, [SLOTS, {self._width}]).to(tl.int64)"
