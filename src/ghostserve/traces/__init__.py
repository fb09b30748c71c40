"""When requests come and how long they are: published traces, or Poisson arrivals from a seed."""

from ghostserve.traces.arrivals import Arrival, poisson
from ghostserve.traces.read import read_trace

__all__ = ["Arrival", "poisson", "read_trace"]
