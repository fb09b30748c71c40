"""`ghostserve demo`: two kills under six streams, shown live, and then every token checked."""

from ghostserve.cli.demo.run import run_demo
from ghostserve.cli.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
