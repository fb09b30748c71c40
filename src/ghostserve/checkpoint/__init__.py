"""Flushing in the shadow of the model. Knows no engine and no framework."""

from ghostserve.checkpoint.checkpointer import Checkpointer
from ghostserve.checkpoint.encoding import encode_ranges
from ghostserve.checkpoint.ledger import CheckpointLedger, EncoderPolicy
from ghostserve.checkpoint.scrubber import Scrubber, ScrubReport
from ghostserve.checkpoint.tasks import FlushTask

__all__ = [
    "CheckpointLedger",
    "Checkpointer",
    "EncoderPolicy",
    "FlushTask",
    "ScrubReport",
    "Scrubber",
    "encode_ranges",
]
