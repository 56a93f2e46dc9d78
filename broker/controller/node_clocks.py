"""What the nodes' wall clocks show, and the time on which they agree: the middle of them. Pure.

The middle, because one that is wrong, however far, can't move it past those that are right; of two it is the earlier
one, by which less is old. Nothing is agreed on before most of the nodes that count were heard, or one that is wrong
would be believed for being the first.
"""

from collections.abc import Collection
from statistics import median_low


class NodeClocks:
    """Those of which the active controller heard. Times now_s are of its own monotonic clock."""

    def __init__(self, *, silence_s: float) -> None:
        """silence_s: how long what a node said counts."""
        self._silence_s = silence_s
        self._heard: dict[int, tuple[float, int]] = {}  # when, and its wall clock less the monotonic one here

    def heard(self, node_id: int, *, wall_us: int, now_s: float) -> None:
        """A node's clock shows that; 0: it doesn't say."""
        if wall_us:
            self._heard[node_id] = (now_s, wall_us - round(now_s * 1_000_000))

    def agreed_us(self, counted: Collection[int], *, now_s: float) -> int:
        """The wall time now; 0: not known. counted: the nodes most of which have to be heard."""
        recent = {
            node_id: clock_us for node_id, (at_s, clock_us) in self._heard.items() if now_s - at_s <= self._silence_s
        }
        if 2 * len(recent) <= len({*counted, *recent}):
            return 0
        return median_low(recent.values()) + round(now_s * 1_000_000)

    def clear(self) -> None:
        """As at the start."""
        self._heard.clear()
