"""What a reader of a stream concludes from one look at it: is anything gone unread?"""

from __future__ import annotations

import typing

import pytest

from geventq.job import Life
from geventq.store.event_reader import Batch, EventReader, Gap, position
from geventq.store.past_ends import REMOVED, End, Past, Told, past_end
from geventq.store.stream import Seen

OLD_REDIS = None  # before 7.0 it does not tell how many entries there were


class Looks:
    """A stream that tells what a test says, and keeps what it was asked."""

    def __init__(self, *seen: Seen) -> None:
        self.seen = list(seen)
        self.asked: list[str | bytes] = []
        self.waits = 0

    def next(self, last_id: bytes) -> Seen:
        self.waits += 1
        return self.look(last_id)

    def look(self, last_id: str | bytes) -> Seen:
        self.asked.append(last_id)
        return self.seen.pop(0)


def seen(
    read: str,
    *,
    kept: tuple[int, int] | None,
    added: int | None,
    newest: int = 0,
    full: bool = False,
) -> Seen:
    """One look: what was read, the first and the last that are kept, how many there ever were."""
    entries = [(f"{n}-0".encode(), [b"event", b"x"]) for n in map(int, read.split())]
    oldest, length = (b"", 0) if kept is None else (b"%d-0" % kept[0], kept[1] - kept[0] + 1)
    last = newest or (kept[1] if kept else 0)
    return Seen(entries, b"%d-0" % last, oldest, length, added, full)


def reading(after: str | None, *looks: Seen) -> list[Batch]:
    stream = Looks(*looks)
    reader = EventReader(typing.cast(typing.Any, stream), None if after is None else after.encode())
    batches = []
    if after is None:
        reader.begin()
    while stream.seen:
        batches.append(reader.read())
    return batches


NOTHING = seen("", kept=(1, 5), added=5)


@pytest.mark.parametrize(
    ("after", "looks", "gaps"),
    [
        pytest.param(None, [NOTHING, seen("6 7", kept=(1, 7), added=7)], [None], id="all there"),
        pytest.param(
            None, [NOTHING, seen("6 7", kept=(6, 7), added=7)], [None], id="only what was read"
        ),
        pytest.param(
            None, [NOTHING, seen("8 9", kept=(8, 9), added=9)], [Gap(b"5-0", 2)], id="two unread"
        ),
        pytest.param(
            None, [NOTHING, seen("", kept=None, newest=9, added=9)], [Gap(b"5-0", 4)], id="all gone"
        ),
        pytest.param(
            None, [NOTHING, seen("", kept=None, newest=5, added=5)], [None], id="trimmed, none new"
        ),
        pytest.param(
            None,
            [NOTHING, seen("", kept=None, added=0), seen("1", kept=(1, 1), added=1)],
            [Gap(b"5-0", None), None],
            id="deleted",
        ),
        pytest.param(
            None,
            [NOTHING, seen("6 7", kept=(6, 7), added=2)],
            [Gap(b"5-0", None)],
            id="deleted, and new ones came",
        ),
        pytest.param(
            None,
            [NOTHING, seen("", kept=(1, 3), added=3), seen("1 2 3", kept=(1, 3), added=3)],
            [Gap(b"5-0", None), None],
            id="a server that has not heard all",
        ),
        pytest.param(
            None,
            [
                NOTHING,
                seen("8 9", kept=(8, 11), added=11, full=True),
                seen("10 11", kept=(8, 11), added=11),
                seen("13", kept=(13, 13), added=13),
            ],
            [Gap(b"5-0", 2), None, Gap(b"11-0", 1)],
            id="page by page",
        ),
        pytest.param(
            None,
            [
                NOTHING,
                seen("6 7", kept=(1, 8), added=8, full=True),
                seen("9", kept=(9, 9), added=9),
            ],
            [None, Gap(b"7-0", 1)],
            id="trimmed between two pages",
        ),
        pytest.param("0", [seen("8 9", kept=(8, 9), added=9)], [None], id="the oldest there is"),
        pytest.param("5-0", [seen("6", kept=(1, 6), added=6)], [None], id="a known entry"),
        pytest.param(
            "5", [seen("8", kept=(8, 8), added=8)], [Gap(b"5-0", None)], id="an entry trimmed"
        ),
        pytest.param(
            "5-0", [seen("8", kept=(8, 8), added=1)], [None], id="before the first there ever was"
        ),
        pytest.param(
            None,
            [seen("", kept=(1, 5), added=OLD_REDIS), seen("6", kept=(2, 6), added=OLD_REDIS)],
            [None],
            id="old Redis: all there",
        ),
        pytest.param(
            None,
            [seen("", kept=(1, 5), added=OLD_REDIS), seen("8", kept=(8, 8), added=OLD_REDIS)],
            [Gap(b"5-0", None)],
            id="old Redis: perhaps two unread",
        ),
    ],
)
def test_a_gap_is_told_where_something_is_gone_unread(
    after: str | None, looks: list[Seen], gaps: list[Gap | None]
) -> None:
    """2.3: and only there."""
    batches = reading(after, *looks)
    assert [batch.gap for batch in batches] == gaps
    entries = [position(entry_id) for batch in batches for entry_id, _ in batch.entries]
    assert entries == sorted(set(entries))


def test_it_waits_only_where_it_has_read_all() -> None:
    stream = Looks(
        NOTHING, seen("6 7", kept=(1, 8), added=8, full=True), seen("8", kept=(1, 8), added=8)
    )
    reader = EventReader(typing.cast(typing.Any, stream), None)
    reader.read()
    reader.read()
    assert stream.waits == 1
    assert stream.asked == ["$", b"5-0", b"7-0"]


ADDED, LATER = Life(b"1", (b"10-0", b"12-0")), Life(b"9", (b"50-0", b"50-0"))
READ: typing.Final = Life(b"1")


def told(text: str) -> list[Told]:
    """``"10a 20c"``: added at 10, completed at 20 with the result 20."""
    ends: dict[str, typing.Callable[[bytes], End | None]] = {
        "a": lambda value: None,
        "c": lambda value: ("completed", value),
        "f": lambda value: ("failed", value),
        "r": lambda value: REMOVED,
    }
    return [Told((int(one[:-1]), 0), ends[one[-1]](one[:-1].encode())) for one in text.split()]


@pytest.mark.parametrize(
    ("life", "has_successor", "stream", "expected"),
    [
        (ADDED, False, "11a 20c", "20"),
        (ADDED, False, "11a 20c 21r", "20"),  # that it was removed does not count
        (ADDED, False, "11a 20r", None),
        (ADDED, False, "11a 20f 30c", "30"),  # retried by hand
        (ADDED, False, "5c 6r 11a 20c", "20"),  # an earlier one
        (ADDED, True, "11a 20c 40a 50c", "20"),
        (ADDED, False, "11a 20c 40a 50c 51r 52a", "20"),
        (ADDED, True, "11a 40a 50c", None),  # deleted without a word
        (ADDED, True, "40a 50c", None),  # trimmed; or the stream began anew
        (ADDED, False, "20c", "20"),  # its beginning is trimmed
        (LATER, False, "11a 20c 50a 60c", "60"),
        (LATER, False, "11a 20c 50a", None),
        (READ, False, "11a 20c", "20"),
        (READ, False, "11a 20c 40a 50c", "50"),
        (READ, False, "11a 20c 40a", None),
        (READ, True, "11a 20c 40a 50c", "20"),
        (READ, True, "20c 40a", "20"),
        (READ, True, "50c", None),
        (READ, False, "50c", "50"),
        (READ, False, "", None),
    ],
)
def test_whose_end_it_is(
    life: Life, has_successor: bool, stream: str, expected: str | None
) -> None:
    """2.11: one id may have been several jobs."""
    end = past_end(Past(life, has_successor), told(stream))
    assert end == REMOVED if expected is None else end[1].decode() == expected
