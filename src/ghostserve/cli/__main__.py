"""`python -m ghostserve.cli`: the command where the package is on the path but not installed."""

import sys

from ghostserve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
