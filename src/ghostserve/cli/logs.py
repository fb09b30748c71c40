"""How the commands log: stdlib logging to stderr, one line an event."""

import logging
import os

from ghostserve.errors import ConfigError

__all__ = ["LEVELS", "quiet_progress_bars", "set_up_logging"]

LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(level: str) -> None:
    """Log `level` and above with time and level. Raises `ConfigError` for an unknown level."""
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; allowed: {', '.join(LEVELS)}")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    if level.lower() != "debug":
        for name in ("uvicorn", "httpx", "numba"):  # their lines about themselves
            logging.getLogger(name).setLevel(logging.WARNING)


def quiet_progress_bars() -> None:
    """Keep other libraries' bars off the terminal, here and in the workers. Call it before they are imported."""
    os.environ.setdefault("TQDM_DISABLE", "1")
