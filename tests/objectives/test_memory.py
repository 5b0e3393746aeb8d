"""The ring of past embeddings."""

import torch

from mmfusion.objectives.memory import Memory


def stored(memory: Memory) -> list[tuple[float, int]]:
    valid = memory.valid()
    return list(zip(memory.embeddings[valid][:, 0].tolist(), memory.concept[valid].tolist(), strict=True))


def add(memory: Memory, *values: int) -> None:
    memory.add(torch.tensor([[float(v)] for v in values]).reshape(-1, 1), torch.tensor(values, dtype=torch.int64))


def test_the_oldest_make_room():
    memory = Memory(size=3, width=1)
    assert stored(memory) == []
    add(memory, 1, 2)
    assert stored(memory) == [(1, 1), (2, 2)]
    add(memory, 3, 4)
    assert stored(memory) == [(4, 4), (2, 2), (3, 3)]
    add(memory)
    assert stored(memory) == [(4, 4), (2, 2), (3, 3)]


def test_of_more_than_it_holds_the_last_stay():
    memory = Memory(size=3, width=1)
    add(memory, 1)
    add(memory, *range(2, 9))
    assert sorted(stored(memory)) == [(6, 6), (7, 7), (8, 8)]
    add(memory, 9)
    assert sorted(stored(memory)) == [(7, 7), (8, 8), (9, 9)]


def test_nothing_fits_in_a_memory_of_none():
    memory = Memory(size=0, width=1)
    add(memory, 1, 2)
    assert stored(memory) == []


def test_stored_embeddings_carry_no_gradient():
    memory = Memory(size=2, width=1)
    memory.add(torch.ones(1, 1, requires_grad=True) * 2, torch.tensor([4]))
    assert not memory.embeddings.requires_grad


def test_a_state_dict_holds_the_ring():
    one, two = Memory(size=3, width=1), Memory(size=3, width=1)
    add(one, 1, 2, 3, 4)
    two.load_state_dict(one.state_dict())
    add(one, 5)
    add(two, 5)
    assert stored(one) == stored(two) == [(4, 4), (5, 5), (3, 3)]
