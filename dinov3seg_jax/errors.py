"""Errors a user can mend, and how a command reports them."""

import difflib
import errno
import functools
import gc
import io
import os
import sys
from collections.abc import Callable, Iterable

LOST = 75  # the status of a process that lost what it needs, and may be started again: "try again" of sysexits.h
UNREAD = 141  # the status of a process whose output nobody reads any more, as shells count it
# What clients of buckets raise when they have given up trying again; their names, since none may be installed.
OUTAGES = {
    "aiohttp.client_exceptions.ClientError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "fsspec.exceptions.FSTimeoutError",
    "google.auth.exceptions.TransportError",
}
BUSY = {408, 429, 500, 502, 503, 504}  # statuses that mend themselves
GAVE_UP = "retry attempts failed"  # in what TensorStore says, whose errors are all of one type


class UserError(Exception):
    """Input the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def one_line(error: object, limit: int | None = None) -> str:
    """What an error says, as one line of at most `limit` characters: libraries write paragraphs."""
    return " ".join(str(error).split())[:limit]


def reason(error: BaseException) -> str:
    """Why something failed, in a few words: the system's where it has some, else the library's, as one line."""
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__


def is_outage(error: BaseException | None) -> bool:
    """Whether something failed because a bucket did not answer, or was too busy to: that mends itself.

    Its clients have tried again for a while before they say so, each in its own words.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if _is_a_clients_outage(error):
            return True
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _is_a_clients_outage(error: BaseException) -> bool:
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if kinds & OUTAGES or (type(error) is ValueError and GAVE_UP in str(error)):
        return True
    said: object = getattr(error, "code", None) if "gcsfs.retry.HttpError" in kinds else None
    if "botocore.exceptions.ClientError" in kinds:
        said = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(said) in {str(status) for status in BUSY}


def outage_sentence(error: BaseException) -> str:
    """What to say of one, whatever came of it on the way up."""
    said = one_line(reason(error), 150).strip(", ")  # gcsfs puts a comma before a status without a word
    return (
        f"a bucket does not answer, or breaks off ({said}); give the same command again when "
        "it does: what is finished counts."
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a word that was mistyped, to be put behind it; empty where nothing is like it."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status: 0 for None; 2, with one line on stderr, for what the user can mend.

    That is a `UserError`, a path that cannot be used, and output that finds no room. Where the output is read no
    further, as by `head`, the command ends without a word. A script imports within `main`, so that Ctrl-C has one
    line for an answer from the start.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files and classes need not be text
    try:
        try:
            status = main()
        finally:
            print(end="", flush=True)  # as Python would at its end, where nobody could catch what it raises
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    except Exception as error:
        status = _status_of(error)
    gc.freeze()  # the collections at the end would go through every object that is still there: a tenth of a short run
    sys.exit(status or 0)


def _status_of(error: Exception) -> int:
    """Say what went wrong, and with which status to end.

    Raises:
        Exception: `error`, where it is one of the program.
    """
    if is_outage(error):
        _report(str(error) if isinstance(error, UserError) else outage_sentence(error))
        return LOST
    if isinstance(error, UserError):
        return _report(str(error))
    if isinstance(error, BrokenPipeError):
        _mute(1, 2)
        return UNREAD
    if isinstance(error, OSError) and error.filename is not None:
        return _report(f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # on the device of stdout, or of a nameless file
        _mute(1)
        return _report(f"the output cannot be written ({error.strerror}); make room for it.")
    raise error


def _report(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


def _mute(*streams: int) -> None:
    """What is still in Python's buffers goes nowhere, so that nothing is said of it at the end."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@functools.lru_cache(maxsize=10_000)
def note(sentence: str) -> None:
    """Say what is no error and what a user should know, once, above a bar if there is one."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        print(f"note: {sentence}", file=sys.stderr)
