"""Makes the script interpreter, and the simulator, importable by name: tests are imported by path, in no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "simulation"))
