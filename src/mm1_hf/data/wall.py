"""The wall around a record: whatever goes wrong with a single record is that record's reason to be dropped."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mm1_hf.data.documents import Unusable


_LONGEST_DETAIL = 300

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def around_record(name: str) -> Generator[None, None, None]:
    """
    Turns any exception that one record causes into [`Unusable`], so that it never ends a run. Only that record may be
    handled inside: a failure of the disk, of the network or of a whole data set has to be raised outside.

    Args:
        name: where the record comes from, for the error message.

    Raises:
        Unusable: the exception that was raised inside, with the reason `"unreadable record (<type>)"` unless it is
            already an `Unusable`.
    """
    try:
        yield
    except Unusable:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        kind = type(error).__name__
        raise Unusable(f"unreadable record ({kind})", f"{name}: {_message(error)}") from error


def result_or_reason(function: Callable[[Item], Result], item: Item, name: str) -> Result | Unusable:
    """
    Calls a function that handles an item of one record.

    Args:
        function: the function.
        item: the item.
        name: where the record comes from, for error messages.

    Returns:
        The function's result, or the reason why there is none.
    """
    try:
        with around_record(name):
            return function(item)
    except Unusable as reason:
        return reason


def results_or_reasons(
    function: Callable[[list[Item]], list[Result]], items: Sequence[Item], names: Sequence[str]
) -> list[Result | Unusable]:
    """
    Calls a function that handles the items of many records at once, so that an item that makes it fail does not take
    the others with it: the items are halved again and again until it is alone.

    Args:
        function: the function, which returns one result for each item.
        items: one item of each record.
        names: where each record comes from, for error messages.

    Returns:
        The result for each item, or the reason why there is none.
    """
    if not items:
        return []
    found = result_or_reason(function, list(items), names[0])
    if not isinstance(found, Unusable):
        return list(found)
    if len(items) == 1:
        return [found]
    half = len(items) // 2
    return [
        *results_or_reasons(function, items[:half], names[:half]),
        *results_or_reasons(function, items[half:], names[half:]),
    ]


def _is_panic(error: BaseException) -> bool:
    """Whether code in Rust, such as a tokenizer, panicked. Such an error is no `Exception`."""
    return type(error).__name__ == "PanicException"


def _message(error: BaseException) -> str:
    # A message may quote the whole record.
    return str(error)[:_LONGEST_DETAIL] or type(error).__name__


def require_unicode(text: str, name: str) -> None:
    """
    Checks that a text has no lone surrogates, which stand for half of a character and which no tokenizer can read.

    Args:
        text: the text.
        name: where the text comes from, for the error message.

    Raises:
        Unusable: the text is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start].encode("ascii", "backslashreplace").decode()
        raise Unusable(
            "text is not valid Unicode",
            f"{name}: character {error.start} of a text is {found}, which is half of a character. Such halves are "
            "left where a text was cut inside an emoji; remove them",
        ) from error
