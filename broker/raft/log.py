"""The log of one node, in memory since the last snapshot (and a little before it). Pure.

Owns what is in the log, what of it was given out to be saved and to be applied, and which configuration holds where.
It never decides what may be appended or committed; `core.py` does.

    ... offset | entries ........................ last
           snapshot <= handed <= commit
"""

from collections.abc import Iterable, Sequence

from broker.raft.membership import Configuration
from broker.raft.messages import Entry, Loaded, Snapshot


class RaftLog:
    """Entries from `first_index` to `last_index`."""

    def __init__(self, loaded: Loaded, *, bootstrap: Configuration) -> None:
        self.snapshot = loaded.snapshot
        self._entries = list(loaded.entries)
        snapshot = loaded.snapshot
        self._offset = snapshot.index if snapshot is not None else 0
        """Index before the first entry; its term is kept to compare with."""
        self._offset_term = snapshot.term if snapshot is not None else 0
        if self._entries and self._entries[0].index <= self._offset:
            first = self._entries.pop(0)
            self._offset, self._offset_term = first.index, first.term
        applied = snapshot.index if snapshot is not None else 0
        self.commit = max(loaded.hard_state.commit, applied)
        self._handed = applied
        self._saved = self.last_index  # given out to be saved, that is
        self._delete_from: int | None = None
        self._delete_below: int | None = None
        self._snapshot_unsaved = False
        self._restored: Snapshot | None = snapshot
        base = snapshot.configuration if snapshot is not None else bootstrap
        self._configurations: list[tuple[int, Configuration]] = [(applied, base)]
        self._note_configurations(entry for entry in self._entries if entry.index > applied)
        assert self.commit <= self.last_index, "the hard state is written together with the entries it knows of"

    @property
    def first_index(self) -> int:
        """Of the entries kept."""
        return self._offset + 1

    @property
    def last_index(self) -> int:
        """0: there never was one."""
        return self._entries[-1].index if self._entries else self._offset

    @property
    def last_term(self) -> int:
        """Of the last entry."""
        return self._entries[-1].term if self._entries else self._offset_term

    @property
    def configuration(self) -> Configuration:
        """The latest, committed or not."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        """The entry that brought it."""
        return self._configurations[-1][0]

    def term_at(self, index: int) -> int | None:
        """None: compacted, or not there yet."""
        if index == self._offset:
            return self._offset_term
        if self._offset < index <= self.last_index:
            return self._entries[index - self._offset - 1].term
        return None

    def entries(self, first: int, *, bytes_max: int) -> tuple[Entry, ...]:
        """From `first` on; at least one if there is any."""
        begin = end = first - self._offset - 1
        size_bytes = 0
        while end < len(self._entries):
            size_bytes += self._entries[end].size_bytes
            if size_bytes > bytes_max and end > begin:
                break
            end += 1
        return tuple(self._entries[begin:end])

    def uncommitted_bytes(self) -> int:
        """Of all entries above `commit`."""
        return sum(entry.size_bytes for entry in self._entries[self.commit - self._offset :])

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """True: a log that ends like this holds all that could be committed here."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def guess_equal(self, index: int, term: int) -> tuple[int, int]:
        """The largest index up to `index` whose term is at most `term`, and its term: where two logs may be equal.

        Skips a whole term in one exchange (Raft dissertation, section 5.3; as etcd's findConflictByTerm).
        """
        index = min(index, self.last_index)
        while index > self._offset:
            found = self.term_at(index)
            if found is not None and found <= term:
                return index, found
            index -= 1
        return index, self.term_at(index) or 0

    # --- Changes.

    def append(self, entries: Sequence[Entry]) -> None:
        """At the end."""
        assert entries[0].index == self.last_index + 1
        self._entries.extend(entries)
        self._note_configurations(entries)

    def merge(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> bool:
        """A leader's entries after `prev_index`; what contradicts them goes. False: the logs differ before that."""
        if self.term_at(prev_index) != prev_term:
            return False
        for position, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                # Only from the first that differs: an old message must not cut off what came after it.
                if entry.index <= self.last_index:
                    self._truncate(entry.index)
                self.append(entries[position:])
                break
        return True

    def commit_to(self, index: int) -> bool:
        """True: that is further than before."""
        if index <= self.commit:
            return False
        assert index <= self.last_index
        self.commit = index
        return True

    def restore(self, snapshot: Snapshot) -> None:
        """A leader's image in place of everything."""
        assert snapshot.index > self.commit
        self.snapshot = self._restored = snapshot
        self._entries = []
        self._offset, self._offset_term = snapshot.index, snapshot.term
        self.commit = self._handed = self._saved = snapshot.index
        self._delete_from, self._delete_below = 0, None
        self._snapshot_unsaved = True
        self._configurations = [(snapshot.index, snapshot.configuration)]

    def compact(self, index: int, data: bytes, *, kept_entries: int) -> None:
        """An own image of what was applied up to `index`; entries before it go, but for the latest."""
        if index <= (self.snapshot.index if self.snapshot is not None else 0):
            return
        assert index <= self._handed, "an image of what was not applied"
        term = self.term_at(index)
        assert term is not None
        while len(self._configurations) > 1 and self._configurations[1][0] <= index:
            self._configurations.pop(0)
        self.snapshot = Snapshot(index, term, self._configurations[0][1], data)
        self._snapshot_unsaved = True
        offset = max(self._offset, index - kept_entries)
        if offset > self._offset:
            offset_term = self.term_at(offset)
            assert offset_term is not None
            del self._entries[: offset - self._offset]
            self._offset, self._offset_term = offset, offset_term
            # The entry at the offset stays on the disk: it carries the term.
            self._delete_below = offset

    def _truncate(self, index: int) -> None:
        assert index > self.commit, "a leader contradicts what is committed"
        del self._entries[index - self._offset - 1 :]
        if index <= self._saved:
            self._saved = index - 1
            self._delete_from = index if self._delete_from is None else min(index, self._delete_from)
        while self._configurations[-1][0] >= index:
            self._configurations.pop()

    def _note_configurations(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.configuration is not None:
                self._configurations.append((entry.index, entry.configuration))

    # --- Giving out.

    def take_unsaved(self) -> tuple[int | None, int | None, Snapshot | None, tuple[Entry, ...]]:
        """What is to be saved, in this order: delete from, delete below, snapshot, entries."""
        entries = tuple(self._entries[max(0, self._saved - self._offset) :])
        taken = self._delete_from, self._delete_below, self.snapshot if self._snapshot_unsaved else None, entries
        self._delete_from = self._delete_below = None
        self._snapshot_unsaved = False
        self._saved = self.last_index
        return taken

    def take_committed(self, *, entries_max: int) -> tuple[Snapshot | None, tuple[Entry, ...]]:
        """What is to be applied: an image, then entries. More may be left."""
        restored, self._restored = self._restored, None
        begin = self._handed - self._offset
        end = min(begin + entries_max, self.commit - self._offset)
        entries = tuple(self._entries[begin:end]) if end > begin else ()
        if entries:
            self._handed = entries[-1].index
        return restored, entries
