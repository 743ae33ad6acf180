"""The fault campaign: real workers on real services, every fault of the list, one oracle. `make faults` runs it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fault"))  # the fleet is the fault tests' own
