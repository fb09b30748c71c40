"""Writes a kernel's source: the loops, the addresses and the checksums that all kernels have in common."""

from collections.abc import Iterator
from dataclasses import dataclass

from ghostserve.codes.base import Plan
from ghostserve.codes.checksum import SEED

__all__ = ["Addressing", "KernelWriter"]

# An entry is a symbol of a slot: SLOTS slots with LANES symbols each are worked on at a time, WORDS words of each.
_HEAD = """\
@triton.jit(do_not_specialize=["count", "columns", "per_tile"])
def run_plan(anchor, bases, strides, table, lanes, index, weights, sums, count, columns, per_tile,
             SLOTS: tl.constexpr, LANES: tl.constexpr, WORDS: tl.constexpr, GROUP: tl.constexpr):
    words = tl.arange(0, WORDS)
    entry = tl.arange(0, SLOTS * LANES)
    lane = entry % LANES
    units = columns * LANES
    column_tiles = tl.cdiv(columns, per_tile)
    tiles = tl.cdiv(count, SLOTS) * column_tiles
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        i = (tile // column_tiles) * SLOTS + entry // LANES
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
    """

    paged: tuple[bool, ...]
    common: bool
    uniform: bool


class KernelWriter:
    """Collects the lines of what happens in one column of units; `source` puts the loops around them.

    A place is where all shards are read or written next: a symbol of the slot, the same in all of them. The kernel's
    table, in words: one row a position (one in all if `common`) with the distance of each unit from its position's
    base, then the block strides and the slot strides of the units.
    """

    def __init__(self, plan: Plan, addressing: Addressing, *, checksums: bool) -> None:
        self.addressing, self.checksums = addressing, checksums
        self.positions = len(plan.inputs) + len(plan.outputs)
        self.num_inputs = len(plan.inputs)
        self._several = plan.rows > 1
        self._masks: dict[str, str] = {}
        self._twins: dict[int, int] = {}
        self._lines: list[str] = []

    def add(self, *lines: str) -> None:
        """More lines."""
        self._lines += lines

    def place(self, name: str, symbol: str, *, absent: str | None = None, hashed: bool = True) -> None:
        """A place called `name`: `symbol` is an expression, a number for each entry (or the same for all).

        Entries where the expression `absent` is true have nothing there: they read zeros. `hashed`: what is read or
        written there counts for the checksums.
        """
        self.add(f"unit_{name} = ({symbol}) * columns + column")
        # Beyond the last slot the last one is read again, in vain: loads without a mask are shorter. Symbols that are
        # absent must read as zeros.
        self.add(f"live_{name} = live[:, None]")
        if absent:
            self.add(f"there_{name} = (~({absent}))[:, None]")
        self._masks[name] = f", mask=there_{name}, other=0" if absent else ""
        mask = f", mask=~({absent}), other=0" if absent else ""
        if any(self.addressing.paged):
            if not self.addressing.uniform:
                self.add(f"slots_{name} = {self._slots_at(f'unit_{name}', mask)}")
            if self.addressing.common:
                self.add(f"apart_{name} = tl.load(table + unit_{name}{mask})")
        if self.checksums and hashed:
            unit = f"unit_{name}[:, None]" if self._several else f"unit_{name}"
            self.add(f"m_{name} = tl.load(weights + {unit} * WORDS + words[None, :])")

    def load(self, position: int, value: str, place: str, *, hashed: bool = True) -> None:
        """Read the unit of the shard at `position` into the variable `value`."""
        self.add(f"{value} = tl.load({self._pointer(position, place)}{self._masks[place]})")
        if hashed:
            self._hash(position, value, place)

    def store(self, position: int, value: str, place: str, *, copy_of: int | None = None) -> None:
        """Write the variable `value` to the unit of the shard at `position`.

        `copy_of`: of which position it is a copy, unit for unit, so that its checksum need not be taken again.
        """
        self.add(f"tl.store({self._pointer(position, place)}, {value}, mask=live_{place})")
        if copy_of is None:
            self._hash(position, value, place)
        else:
            self._twins[position] = self._twins.get(copy_of, copy_of)

    def source(self) -> str:
        """The whole kernel, called `run_plan`."""
        lines = [_HEAD.rstrip()]
        if self.addressing.uniform:
            lines.append(f"        slots = {self._slots_at('0', '')}")
        for p, paged in enumerate(self.addressing.paged):
            base = f"tl.load(bases + {p})"
            if not paged:
                base += f" + row * tl.load(strides + {p})"
            elif self.addressing.uniform:
                base += " + slots"
            lines.append(f"        base{p} = {base}")
        if self.checksums:
            empty = "tl.zeros([SLOTS * LANES, WORDS // GROUP], tl.uint64)"
            lines += [f"        hash{p} = {empty}" for p in range(self.positions) if p not in self._twins]
        lines.append("        for column in range(first, tl.minimum(first + per_tile, columns)):")
        lines += [f"            {line}" for line in self._lines]
        if self.checksums:
            lines += [f"        {line}" for line in self._add_up()]
        return "\n".join(lines) + "\n"

    def _slots_at(self, unit: str, mask: str) -> str:
        rows = 1 if self.addressing.common else self.positions
        block, slot = (f"tl.load(table + {rows + k} * units + {unit}{mask})" for k in range(2))
        return f"block * {block} + slot * {slot}"

    def _pointer(self, position: int, place: str) -> str:
        parts = [f"base{position}"]
        if not self.addressing.paged[position]:
            parts.append(f"unit_{place} * WORDS")
        else:
            if not self.addressing.uniform:
                parts.append(f"slots_{place}")
            look_up = f"tl.load(table + {position} * units + unit_{place}, mask=unit_{place} < units, other=0)"
            parts.append(f"apart_{place}" if self.addressing.common else look_up)
        # The hint is what makes threads load 16 bytes at a time.
        self.add(f"at = tl.multiple_of({' + '.join(parts)}, 4)")
        return "anchor + at[:, None] + words[None, :]"

    def _hash(self, position: int, value: str, place: str) -> None:
        if self.checksums:
            self.add(f"hash{position} = hash_words({value}, m_{place}, hash{position}, WORDS, GROUP)")

    def _add_up(self) -> Iterator[str]:
        """A tile's share of the checksums, of all shards in one atomic: threads exchange them only once."""
        width = 1 << (self.positions - 1).bit_length()
        taken = [self._twins.get(p, p) for p in range(self.positions)]
        names = [f"tl.sum(hash{taken[min(p, self.positions - 1)]}, 1)" for p in range(width)]  # the surplus is masked
        depth = 0
        while len(names) > 1:
            # What is joined last becomes the innermost axis, so position p is paired with p + half.
            half = len(names) // 2
            for p in range(half):
                yield f"join{depth}_{p} = tl.join({names[p]}, {names[p + half]})"
            names = [f"join{depth}_{p}" for p in range(half)]
            depth += 1
        yield f"p = tl.arange(0, {width})"
        yield f"total = tl.reshape({names[0]}, [SLOTS * LANES, {width}]).to(tl.int64)"
        yield f"total += tl.where((first == 0) & (lane == 0), {SEED}, 0).to(tl.int64)[:, None]"
        yield f"to = sums + i[:, None] * {self.positions} + p[None, :]"
        yield f'tl.atomic_add(to, total, mask=live[:, None] & (p < {self.positions})[None, :], sem="relaxed")'
