"""Errors a user can mend, and how a command reports them."""

import gc
import sys
from collections.abc import Callable


class UserError(Exception):
    """Input the user can mend. The message is one sentence: what is wrong, where, and the mend."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status: 0 for None; 2, with one line on stderr, for a `UserError`."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    gc.freeze()  # the collections at the end would go through every object that is still there: a tenth of a short run
    sys.exit(status or 0)
