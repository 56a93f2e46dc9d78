"""Makes this folder's modules, and the brokers of the kill tests, importable by name: tests are imported by path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "chaos"))
