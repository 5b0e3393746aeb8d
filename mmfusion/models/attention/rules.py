"""Who may look at whom: small mask rules that compose with `&` and `|`.

A rule compares the places of queries with the places of keys. It knows nothing of rows, padding or caches: a key that
lies in a cache, or somewhere else in the row, is judged by its document and its position alone, so that one rule
serves packed rows, padded rows and generation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where pieces stand: document[R, L] (any integers; -1 for padding) and position[R, L] within the document.

    answer[R, L] tells the answers to one prompt apart, -1 is the prompt; without it no document has several.
    """

    document: Tensor
    position: Tensor
    answer: Tensor | None = None


class Rule(ABC):
    """A mask rule. Rules are values: they hold numbers, no weights and no state."""

    @abstractmethod
    def __call__(self, query: Places, key: Places) -> Tensor:
        """allowed[R, Q, K], True where the query may look at the key."""

    def __and__(self, other: Rule) -> Rule:
        return Both(self, other)

    def __or__(self, other: Rule) -> Rule:
        return Either(self, other)


@dataclass(frozen=True)
class Both(Rule):
    """What both rules allow."""

    first: Rule
    second: Rule

    def __call__(self, query: Places, key: Places) -> Tensor:
        return self.first(query, key) & self.second(query, key)


@dataclass(frozen=True)
class Either(Rule):
    """What at least one of two rules allows."""

    first: Rule
    second: Rule

    def __call__(self, query: Places, key: Places) -> Tensor:
        return self.first(query, key) | self.second(query, key)


@dataclass(frozen=True)
class Causal(Rule):
    """No key at a later position than the query's."""

    def __call__(self, query: Places, key: Places) -> Tensor:
        return query.position[:, :, None] >= key.position[:, None, :]


@dataclass(frozen=True)
class Document(Rule):
    """Only keys of the query's own document, but for those of another answer than its own.

    Padding is a document like any other (-1): it sees itself and nothing else sees it, so that no softmax is empty.
    """

    def __call__(self, query: Places, key: Places) -> Tensor:
        own = query.document[:, :, None] == key.document[:, None, :]
        if query.answer is None or key.answer is None:
            return own
        other = (key.answer[:, None, :] >= 0) & (query.answer[:, :, None] != key.answer[:, None, :])
        return own & ~other


@dataclass(frozen=True)
class Window(Rule):
    """Only the nearest `size` positions up to the query's own, itself among them (later ones are Causal's business)."""

    size: Annotated[int, Gt(0)]

    def __call__(self, query: Places, key: Places) -> Tensor:
        return query.position[:, :, None] - key.position[:, None, :] < self.size


@dataclass(frozen=True)
class Sink(Rule):
    """Only the first `size` positions of a document: what every later query keeps in sight (Xiao et al. 2309.17453)."""

    size: Annotated[int, Ge(0)]

    def __call__(self, query: Places, key: Places) -> Tensor:
        first = key.position[:, None, :] < self.size
        return first.expand(-1, query.position.shape[1], -1)


@dataclass(frozen=True)
class CausalWindow(Rule):
    """`Causal() & Document() & (Window(window) | Sink(sink))`: the decoder rule, under one name for a configuration."""

    window: Annotated[int, Gt(0)]
    sink: Annotated[int, Ge(0)]

    def __call__(self, query: Places, key: Places) -> Tensor:
        return (Causal() & Document() & (Window(self.window) | Sink(self.sink)))(query, key)
