"""Erasure codes and the backends that run them."""

from ghostserve.codes.backend import Backend
from ghostserve.codes.base import Code, Plan, Step
from ghostserve.codes.checksum import checksum_reference
from ghostserve.codes.copies import CopyCode
from ghostserve.codes.rdp import RdpCode
from ghostserve.codes.reference import run_reference
from ghostserve.codes.registry import make_backend, make_code
from ghostserve.codes.rs import ReedSolomonCode
from ghostserve.codes.xor import XorCode

__all__ = [
    "Backend",
    "Code",
    "CopyCode",
    "Plan",
    "RdpCode",
    "ReedSolomonCode",
    "Step",
    "XorCode",
    "checksum_reference",
    "make_backend",
    "make_code",
    "run_reference",
]
