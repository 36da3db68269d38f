"""Rows of parametrized tests, of which the fast suite runs some."""

import pytest


def slow_but(rows, *fast):
    """The rows of a table for `parametrize`, marked slow but for those that are named.

    What tells these from the others is no formula of ours: it is enough to run them in CI. The rows
    of a dict are its values, and have its keys as names and ids.
    """
    named = rows if isinstance(rows, dict) else {row: row for row in rows}
    return [
        pytest.param(
            row,
            id=getattr(name, "__name__", str(name)),
            marks=() if name in fast else pytest.mark.slow,
        )
        for name, row in named.items()
    ]
