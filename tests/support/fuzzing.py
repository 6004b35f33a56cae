"""
What the modules of tests/fuzz share: how many cases each kind of input gets, accidents that befall bytes and JSON values,
and limits for each case.

`MM1_FUZZ_CASES` cases, 2,000 by default and 100,000 in `make fuzz`, are divided among the kinds. A case is drawn from its
number alone, so that it can be repeated. How the cases of a kind ended is counted and shown below the tests' results.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


TOTAL = int(os.environ.get("MM1_FUZZ_CASES", "2000"))
# The share of each kind in a hundred cases.
SHARES = {
    "images": 20,
    "records": 20,
    "pages": 10,
    "archives": 8,
    "settings": 12,
    "checkpoints": 15,
    "chats": 8,
    "bodies": 7,
}
# A test is divided into so many, so that several processes share it.
PARTS = 4
SECONDS = 20
GROWTH_MB = 1024
CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


class Hangs(BaseException):
    """Not an `Exception`, so that nothing between here and the reader takes it for a broken input."""


def number_of_cases(kind: str, tests: int = 1) -> int:
    """Number of cases of a kind, for each of the tests that share them."""
    return max(TOTAL * SHARES[kind] // (100 * tests), 1)


@contextmanager
def limits(seconds: int = SECONDS, growth_mb: int = GROWTH_MB) -> Iterator[None]:
    """
    Raises [`Hangs`] in a case that takes too long, and `MemoryError` after one that took too much. Code that never
    returns to Python cannot be interrupted: the process ends, with the place where it was.
    """

    def stop(*_):
        raise Hangs(f"more than {seconds} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    # In kilobytes, the highest so far.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > growth_mb:
        raise MemoryError(f"{grown} MB")


class Tally:
    """Counts how the cases of a kind end, by kind of input."""

    def __init__(self, kind: str):
        self.kind, self.outcomes = kind, Counter()

    def run(
        self,
        case: str,
        attempt: Callable[[], Any],
        allowed: tuple[type[BaseException], ...] = (ValueError,),
        names: str | None = None,
        **bounds: int,
    ) -> Any:
        """
        Runs a case. An exception of another type than those allowed fails the test, and so does one whose words do not
        hold `names`.

        Returns:
            What the case returned, or `None` if it raised an allowed exception.
        """
        try:
            with limits(**bounds):
                result = attempt()
        except allowed as error:
            if names is not None and names not in str(error):
                pytest.fail(f"{self.kind}, {case}: {type(error).__name__} does not name {names}: {error}")
            self.outcomes[type(error).__name__] += 1
            return None
        # Rust extensions panic with an exception that is not an `Exception`.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | pytest.fail.Exception):
                raise
            pytest.fail(f"{self.kind}, {case}: {type(error).__name__}: {str(error)[:500]}")
        self.outcomes["read"] += 1
        return result


def mutate(data: bytes, draw: random.Random) -> bytes:
    """The bytes after a few accidents, most of them near the beginning, where headers are."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        place = int(len(data) * draw.random() ** draw.choice((1, 4)))
        accident = draw.randrange(8)
        if accident == 0:
            data[place : place + 1] = bytes([draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))])
        elif accident == 1:
            del data[place : place + draw.randint(1, 64)]
        elif accident == 2:
            data[place:place] = draw.randbytes(draw.randint(1, 64))
        elif accident == 3:
            data[place : place + 4] = draw.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif accident == 4:
            data[place : place + 8] = draw.choice((1, 8, 1 << 20, 1 << 40, (1 << 63) - 1)).to_bytes(8, "little")
        elif accident == 5:
            other = int(len(data) * draw.random())
            data[place:place] = data[other : other + draw.randint(1, 64)]
        elif accident == 6 and data:
            data[place : place + 1] = bytes([data[min(place, len(data) - 1)] ^ 1 << draw.randrange(8)])
        else:
            del data[place:]
    return bytes(data)


def mutate_json(value: Any, draw: random.Random) -> Any:
    """A JSON value after one accident, anywhere inside it."""
    places = list(_places(value))
    holder, key = draw.choice(places) if places else (None, None)
    if holder is None:
        return _hostile(draw)
    accident = draw.randrange(6)
    if accident == 0:
        del holder[key]
    elif accident == 1 and isinstance(holder, dict):
        holder[draw.choice([*holder, "", "\ud83d", "__folder__", "__files__", "images", "messages"])] = holder.pop(key)
    elif accident == 2:
        holder[key] = [holder[key]]
    elif accident == 3:
        other, name = draw.choice(places)
        # Read before it is written, and copied: no value may hold itself.
        holder[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else other[name % len(other)]))
    elif accident == 4 and isinstance(holder[key], str):
        text = holder[key]
        cut = draw.randrange(len(text) + 1)
        holder[key] = (
            text[:cut] + draw.choice(("", "<image>", "\ud83d", "\0", "\u202e", "../", "\x1b[2J")) + text[cut:]
        )
    else:
        holder[key] = _hostile(draw)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value that holds another one."""
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def _hostile(draw: random.Random) -> Any:
    nested: Any = "end"
    for _ in range(draw.choice((3, 400))):
        nested = [nested] if draw.random() < 0.5 else {"a": nested}
    values = [None, True, 0, -1, 5, 1 << 70, 0.5, float("nan"), float("inf"), [], {}, [None], [[]], {"": {}}, nested]
    texts = [
        "",
        " ",
        "\ud83d",
        "\0",
        "<image>",
        "x" * 100_000,
        "/etc/hostname",
        "../../x.png",
        "http://127.0.0.1/",
        "data:,",
    ]
    return draw.choice([*values, *texts])
