"""Which names topics and groups may have: one rule, so that a name is safe in paths, labels and logs everywhere."""

import re
from typing import Final

from broker.errors import invalid_field

NAME_CHARS_MAX: Final = 249
INTERNAL_PREFIX: Final = "__"
_ALLOWED: Final = re.compile(r"[a-zA-Z0-9._-]+")


def check_name(field: str, name: str) -> None:
    """Refuses a name that no topic or group can have."""
    if not name:
        raise invalid_field(field, "a name is required")
    if len(name) > NAME_CHARS_MAX:
        raise invalid_field(field, f"a name has at most {NAME_CHARS_MAX} characters, this one has {len(name)}")
    if not _ALLOWED.fullmatch(name):
        raise invalid_field(field, f"a name is made of a-z A-Z 0-9 . _ and -, unlike {name!r}")
    if name in (".", ".."):
        raise invalid_field(field, f"{name!r} is not a name")


def is_internal(name: str) -> bool:
    """Whether the name belongs to the broker itself."""
    return name.startswith(INTERNAL_PREFIX)


def check_user_name(field: str, name: str) -> None:
    """Refuses also the names that belong to the broker, for requests that create or change something."""
    check_name(field, name)
    if is_internal(name):
        raise invalid_field(field, f"names that begin with {INTERNAL_PREFIX} belong to the broker, {name!r} too")
