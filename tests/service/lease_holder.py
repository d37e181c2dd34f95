"""A process that holds the line's lease: `python -m tests.service.lease_holder SECONDS`, settings from the environment.

It says `working` once it has the lease, and lets go of it when its standard input ends.
"""

from __future__ import annotations

import sys

from service.context import Context
from service.erasure.lease import LineLease
from service.errors import StartupError
from service.keys.keyring import Keyring
from service.settings import Settings
from service.store.engine import connect


def main() -> None:
    settings = Settings()
    context = Context(settings, connect(settings), Keyring.open(settings.keys_folder))
    try:
        with LineLease(context, float(sys.argv[1])):
            print("working", flush=True)  # noqa: T201
            sys.stdin.read()
    except StartupError as error:
        sys.exit(error.detail)


if __name__ == "__main__":
    main()
