"""What was read and decoded before, kept in memory up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

_Value = TypeVar("_Value")


class Cache:
    """Values by name, at most `most_bytes` of them; the one that was asked for longest ago goes first.

    Decoding a spoken clip costs more than all the rest that is done with it, and small sets are met many times. Values
    are shared, so nobody may change one. A copy in another process starts empty.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return Cache, (self.most_bytes,)

    def get(self, name: Hashable, make: Callable[[], _Value], bytes_of: Callable[[_Value], int]) -> _Value:
        """The value of that name, made if it is not there. What `make` raises is raised, and made again next time."""
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
            return found[0]
        value = make()
        size = bytes_of(value)
        if size <= self.most_bytes:
            self._kept[name] = (value, size)
            self.used_bytes += size
            while self.used_bytes > self.most_bytes:
                self.used_bytes -= self._kept.popitem(last=False)[1][1]
        return value
