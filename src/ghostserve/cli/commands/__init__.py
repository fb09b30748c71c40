"""The commands, a file each: options and their words; what they do is imported when they run."""

from ghostserve.cli.commands.bench import bench
from ghostserve.cli.commands.demo import demo
from ghostserve.cli.commands.plan import plan
from ghostserve.cli.commands.serve import serve
from ghostserve.cli.commands.simulate import simulate
from ghostserve.cli.commands.simulate_faults import simulate_faults
from ghostserve.cli.soak import soak

__all__ = ["COMMANDS"]

COMMANDS = (serve, demo, bench, simulate_faults, plan, simulate, soak)
"""In the order in which `ghostserve --help` names them."""
