"""`dinov3seg app`: a page in the browser where pictures are segmented by the names that are typed."""

import argparse
import os
import signal
import time
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, add_folder_argument, count
from dinov3seg_jax.errors import UserError, note, reason
from dinov3seg_jax.files import expanded

DESCRIPTION = "segment pictures in the browser"
PASSWORD_VARIABLE = "DINOV3SEG_APP_AUTH"
LOCAL = ("127.0.0.1", "localhost", "::1")
EPILOG = f"""\
Without --auth, {PASSWORD_VARIABLE} may hold USER:PASSWORD, which then is in no list of processes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from dinov3seg_jax.app.limits import Limits

    limits = Limits()
    model = parser.add_argument_group("model")
    more = "; may be given several times. Runs in runs/ and fetched models can be chosen on the page too"
    add_folder_argument(model, more, action="append", default=[])
    server = parser.add_argument_group("server", EPILOG)
    server.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reached from other machines; default: only here")
    server.add_argument("--port", type=count, default=7860, metavar="N", help="default: %(default)s")
    server.add_argument("--auth", metavar="USER:PASSWORD", help="who may use it; or @FILE with one such line for each")
    bounds = parser.add_argument_group("limits")
    bounds.add_argument(
        "--max_upload", type=count, default=limits.upload, metavar="BYTES", help="of a file; default: %(default)s"
    )
    bounds.add_argument(
        "--max_pixels", type=count, default=limits.pixels, metavar="N", help="of a picture; default: %(default)s"
    )
    bounds.add_argument(
        "--queue", type=count, default=limits.queue, metavar="N", help="questions that may wait; default: %(default)s"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: there is no model, or the address or the password cannot be used.
    """
    from dinov3seg_jax.app.limits import Limits
    from dinov3seg_jax.app.models import Models, find_models
    from dinov3seg_jax.app.server import Address, running

    if overrides:
        raise UserError(f"--config.{overrides[0]} changes nothing here; a run of its own has options of its own.")
    if options.port > 65535:
        raise UserError(f"--port is {options.port}, and the largest is 65535; choose another.")
    address = Address(options.host, options.port, passwords(options.auth))
    if address.host not in LOCAL and not address.auth:
        note(f"whoever reaches {address.host}:{address.port} can use the app; --auth asks for a password")
    models = Models(find_models(options.checkpoint))

    from dinov3seg_jax.cache.programs import keep_programs

    keep_programs()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # by which containers end: nothing is left behind
    limits = Limits(options.max_upload, options.max_pixels, queue=options.queue)
    with running(models, limits, address) as url:
        print(f"open {url} in a browser; Ctrl-C ends the app", flush=True)
        models.warm(models.names[0])
        while True:
            time.sleep(3600)


def passwords(typed: str | None) -> tuple[tuple[str, str], ...]:
    """Users with their passwords.

    Raises:
        UserError: a line is not USER:PASSWORD, or the file cannot be read.
    """
    if typed is None:
        lines, where = [os.environ.get(PASSWORD_VARIABLE, "")], PASSWORD_VARIABLE
    elif typed.startswith("@"):
        where = typed[1:]
        try:
            lines = expanded(where).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"the passwords in {where} cannot be read ({reason(error)}); check the path") from error
        if not any(map(str.strip, lines)):
            raise UserError(f"{where} holds no password; write USER:PASSWORD, one a line")
    else:
        lines, where = [typed or ":"], "--auth"
    found = []
    for line in filter(str.strip, lines):
        user, _, password = line.partition(":")
        if not user or not password:
            raise UserError(f"{where} holds a line that is not USER:PASSWORD; write it so")
        found.append((user, password))
    return tuple(found)


COMMAND = Command("app", DESCRIPTION, add_arguments, run)
main = COMMAND.main
