"""Progress bars of what takes long, where tqdm is installed."""

from collections.abc import Iterable
from typing import Any


def with_bar(
    items: Iterable, what: str, unit: str, *, show: bool, total: int | None = None
) -> Iterable[Any]:
    """Returns the items, with a bar that follows them if it is to be shown and can be."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, unit=unit) if show else items
