"""Makes the simulator, the network in memory and this folder's cluster importable by name."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "simulation", HERE.parent / "peers"):
    sys.path.insert(0, str(folder))
