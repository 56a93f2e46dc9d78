"""What holds for all tests: nothing depends on how fast the machine is, and CI's examples are the same each time."""

import os

import pytest
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


# These build programs once for all of them.
BUILT_ONCE = "tests/clients/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two processes share the tests, those of a file stay together: they share clusters."""
    for item in items:
        file = item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(BUILT_ONCE if file.startswith(BUILT_ONCE) else file))
