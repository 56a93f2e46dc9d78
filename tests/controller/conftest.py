"""Makes `images` importable by name: tests are imported by path and are no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
