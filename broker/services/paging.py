"""Pages of things in the order of their names, as every List call gives them."""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

from broker import errors

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000


def page(names: Sequence[str], *, page_size: int, page_token: str) -> tuple[Sequence[str], str]:
    """The next names of a sorted list, and the token of the page after; empty when there is none.

    A token names the last name that was given, so that what comes and goes between two calls moves nothing else.
    """
    if not 0 <= page_size <= PAGE_SIZE_MAX:
        raise errors.invalid_field("page_size", f"{page_size} is not within 0 (for {PAGE_SIZE_DEFAULT}) and 1000")
    after = decoded(page_token) if page_token else None
    rest = names if after is None else [name for name in names if name > after]
    shown = rest[: page_size or PAGE_SIZE_DEFAULT]
    more = len(rest) > len(shown)
    return shown, encoded(shown[-1]) if more else ""


def encoded(last_name: str) -> str:
    """The token of the page after that name."""
    return base64.urlsafe_b64encode(last_name.encode()).decode()


def decoded(token: str) -> str:
    """The last name of the page before; raises INVALID_ARGUMENT."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise errors.invalid_field("page_token", "is not one that an earlier answer gave") from None
