"""The helpers beside these tests can be imported here, and by the processes that they start."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
