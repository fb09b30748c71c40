"""A fleet of tensor-parallel engines that fail, simulated: every strategy under the same arrivals and faults."""

from ghostserve.fleetsim.constants import Constants, read_constants
from ghostserve.fleetsim.faults import Fault, FleetSettings, draw_faults
from ghostserve.fleetsim.fleet import FleetOutcome, simulate_fleet
from ghostserve.fleetsim.load import poisson_load, trace_load
from ghostserve.fleetsim.queue import Restore, Served, serve
from ghostserve.fleetsim.strategies import STRATEGIES, restore_of

__all__ = [
    "STRATEGIES",
    "Constants",
    "Fault",
    "FleetOutcome",
    "FleetSettings",
    "Restore",
    "Served",
    "draw_faults",
    "poisson_load",
    "read_constants",
    "restore_of",
    "serve",
    "simulate_fleet",
    "trace_load",
]
