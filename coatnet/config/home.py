"""What `~/…` stands for, wherever no shell has written it out."""

from __future__ import annotations

import os

from coatnet.config.errors import UserError


def with_home(path: str) -> str:
    """Return the path behind `~` or `~/…`.

    Raises:
        UserError: this user has no home, as in a container that knows no name for their number.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):  # as it stands it would name a folder here that is dangerous to remove
        raise UserError(f"{path}: there is no such home; set HOME, or give the whole path")
    return found
