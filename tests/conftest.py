"""What holds for all tests: nothing depends on how fast the machine is, and CI's examples are the same each time."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "postbus",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # New examples at each run by hand, the same ones in CI.
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
)
settings.load_profile("postbus")
