"""Which protection pays for itself: a pure function from sizes, rates and failures to a choice with its reasons."""

from ghostserve.plan.choose import Plan, make_plan
from ghostserve.plan.inputs import FAILURES, HARDWARE, Failures, Hardware, Wishes
from ghostserve.plan.measured import measured_hardware
from ghostserve.plan.models import MODELS, ModelShape, read_shape
from ghostserve.plan.strategies import Outlook

__all__ = [
    "FAILURES",
    "HARDWARE",
    "MODELS",
    "Failures",
    "Hardware",
    "ModelShape",
    "Outlook",
    "Plan",
    "Wishes",
    "make_plan",
    "measured_hardware",
    "read_shape",
]
