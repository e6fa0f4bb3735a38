"""Errors for the person at the keyboard: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class AttarError(Exception):
    """A mistake the user can mend. The command line prints the message alone and exits with `exit_code`."""

    exit_code = 2


class DataError(AttarError):
    """Data is missing, empty, corrupt or not of the kind that was asked for."""


class RecipeError(AttarError):
    """A recipe, an override or a field does not describe something that can be run."""


class DamagedFile(AttarError):
    """A file does not match its own checksum or header."""


class NonFinite(AttarError):
    """A loss or a gradient became NaN or infinite; the message names loop, step and term."""

    exit_code = 1


class Interrupted(BaseException):
    """The run was stopped by a signal after saving its state; the same command goes on from there.

    It is no `Exception`, as KeyboardInterrupt is none: nothing that looks for mistakes may take a signal for one.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (str(self), self.signum)  # a worker process sends it to its parent


def did_you_mean(name: str, known: Iterable[str], written: Mapping[str, str] | None = None) -> str:
    """Return the end of a sentence that names an unknown thing: the nearest known name, or a full stop.

    `written` holds names that are to be written in another way, such as with the names of what they lie in.

    >>> "unknown method 'datdam'" + did_you_mean("datdam", ["datadam", "dm"])
    "unknown method 'datdam'; did you mean 'datadam'?"
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{(written or {}).get(nearest[0], nearest[0])}'?" if nearest else "."
