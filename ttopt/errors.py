"""The one error a user is meant to see."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend: says which file, sample or setting was wrong, and the cure.

    The command line prints it as one line and exits with code 2.
    """
