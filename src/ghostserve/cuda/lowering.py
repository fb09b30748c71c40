"""From a plan to the source of a Triton kernel, with everything that is known of the plan as constants.

Position-wise plans load all their inputs, then build each output bit-plane by bit-plane, from the highest bit of the
coefficients down: double what there is, xor the inputs whose coefficient has the bit (Horner's rule).

Row-diagonal plans are lowered by `row_diagonal`.
"""

from ghostserve.codes.base import Plan, Step
from ghostserve.cuda import row_diagonal
from ghostserve.cuda.writer import Addressing, KernelWriter
from ghostserve.errors import UnsupportedCodeError

__all__ = ["lower", "simplest"]


def simplest(plan: Plan) -> Plan:
    """A row-diagonal plan that needs no diagonal, as a position-wise one: every output is the xor of all inputs."""
    if plan.array is None or None in plan.array.columns:
        return plan
    count = len(plan.inputs)
    terms = tuple((p, 1) for p in range(count))
    return Plan(plan.inputs, plan.outputs, 1, tuple(Step(count + k, terms) for k in range(len(plan.outputs))))


def lower(plan: Plan, addressing: Addressing, *, checksums: bool) -> str:
    """The source of a kernel `run_plan` that runs `plan`.

    Raises `UnsupportedCodeError` for several symbols a slot without a row-diagonal structure, or a prime too large.
    """
    writer = KernelWriter(plan, addressing, checksums=checksums)
    if plan.rows == 1:
        _horner(writer, plan)
    elif plan.array is None:
        raise UnsupportedCodeError(f"the GPU kernels know no code with {plan.rows} symbols a slot but rdp")
    else:
        row_diagonal.lower(writer, plan, plan.array)
    return writer.source()


def _horner(writer: KernelWriter, plan: Plan) -> None:
    writer.place("here")
    for position in range(writer.num_inputs):
        writer.load(position, f"x{position}", "here")
    for step in plan.steps:
        value = f"x{step.target}"
        source, coefficient = step.terms[0] if len(step.terms) == 1 else (0, 0)
        if coefficient == 1:
            writer.add(f"{value} = x{source}")
            writer.store(step.target, value, "here", copy_of=source)
            continue
        started = False
        for bit in range(7, -1, -1):
            terms = " ^ ".join(f"x{source}" for source, c in step.terms if c >> bit & 1)
            if started:
                terms = f"double({value})" + (f" ^ {terms}" if terms else "")
            if terms:
                writer.add(f"{value} = {terms}")
                started = True
        if not started:
            writer.add(f"{value} = tl.zeros([SLOTS, WORDS], tl.uint32)")
        writer.store(step.target, value, "here")
