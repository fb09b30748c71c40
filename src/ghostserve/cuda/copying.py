"""A plan that copies one shard to another place, so that kernels copy paged caches and take checksums on the way."""

from ghostserve.codes import Plan, Step

__all__ = ["COPY"]

COPY = Plan(inputs=(0,), outputs=(1,), rows=1, steps=(Step(1, ((0, 1),)),))
