"""What is drawn, what it is worth, and which way the loss goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfusion.objectives.policy import Drawn, Exact, GroupPolicy
from mmfusion.rows import answered, prompts
from mmfusion.types import IGNORE, Batch, Outputs, Rows

BEGIN, ASSISTANT, END = 1, 2, 3


def batch(visit: tuple[int, int] = (0, 1), first: int = 0) -> Batch:
    """A caption and two prompts of unequal lengths in one row; the second prompt is the first sample's."""
    document = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1]])
    labels = torch.full_like(document, IGNORE)
    labels[0, 0] = 7
    ids = torch.tensor([[BEGIN, 7, BEGIN, 4, ASSISTANT, BEGIN, ASSISTANT, 0]])
    position = torch.tensor([[0, 1, 0, 1, 2, 0, 1, 0]])
    of = torch.arange(3)
    rows = Rows(ids, labels, document, position, torch.full_like(ids, -1), document, of.flip(0), of, torch.ones(3))
    return Batch(
        streams={},
        rows=rows,
        keys=("a", "b", "c"),
        concept=of,
        seeds=of + first,
        sources=("x", "y", "z"),
        checks=("5 6\n5", "8", None),
        visit=visit,
    )


class Parrot:
    """Says what it is told to, and keeps how it was asked."""

    end = END
    banned: Sequence[int] = (0,)

    def __init__(self, *said: list[int]) -> None:
        self.said, self.asked = list(said), []

    def __call__(self, batch: Batch, **how: Any) -> list[list[int]]:
        self.asked.append({"rows": batch.rows, **how})
        return self.said

    def text(self, pieces: Sequence[int]) -> str:
        return " ".join(map(str, pieces))


def objective(*said: list[int], **how: Any) -> GroupPolicy:
    made = GroupPolicy(reward=Exact(), **{"samples": 2, "max_new": 2, **how})
    made.speaker = Parrot(*said)
    return made


FOUR = ([5, 6], [5], [8], [9])  # two answers to each of two prompts; the first is cut


def outputs(view: Batch, seed: int = 0) -> Outputs:
    torch.manual_seed(seed)
    return Outputs({}, {}, torch.randn(*view.rows.ids.shape, 4, requires_grad=True), torch.randn(10, 4))


def test_prompts_are_the_documents_without_a_label() -> None:
    asked = prompts(batch().rows)
    assert asked.owner.tolist() == [1, 0]
    assert asked.ids.tolist() == [[BEGIN, 4, ASSISTANT], [BEGIN, ASSISTANT, 0]]
    assert asked.document.tolist() == [[0, 0, 0], [1, 1, -1]]
    assert objective(*FOUR).count(batch()) == 4


def test_answers_go_on_where_their_prompt_ends() -> None:
    rows = answered(prompts(batch().rows), [[5, 6], [5, END], [8, END], [9, END]])
    assert rows.ids[0].tolist() == [BEGIN, 4, ASSISTANT, 5, 6, ASSISTANT, 5, END]
    assert rows.labels[0].tolist() == [IGNORE, IGNORE, 5, 6, IGNORE, 5, END, IGNORE]
    assert rows.position[0].tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert rows.answer[0].tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    assert rows.answer[1].tolist() == [-1, 2, 2, 2, 3, 3, 3, -1]
    assert rows.document[1].tolist() == [1] * 7 + [-1]
    assert (rows.of.tolist(), rows.owner.tolist()) == ([0, 0, 1, 1], [1, 0])


def test_what_is_said_is_worth_what_its_check_says() -> None:
    view = objective(*FOUR).views(batch())
    assert isinstance(view, Drawn)
    assert view.rows.score.tolist() == [0, 0, 0, 0]  # the checks are those of samples 1 and 0
    made = objective([8], [9], [5, 6], [5])
    assert made.views(batch()).rows.score.tolist() == [1, 0, 1, 1]
    unchecked = dataclasses.replace(batch(), checks=("5", None, None))
    with pytest.raises(ValueError, match="needs a check, which the prompt 'b' lacks"):
        made.views(unchecked)


def test_the_seeds_are_all_that_is_random() -> None:
    made = objective(*FOUR, temperature=0.5)
    made.views(batch())
    made.eval()
    made.speaker.said = [[8], [9]]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert made.views(batch()).rows.score.tolist() == [1, 0]
    training, validation = made.speaker.asked  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert (training["seeds"], training["samples"], training["temperature"]) == ([1, 0], 2, 0.5)
    assert (validation["samples"], validation["temperature"]) == (1, 0.0)


def by_hand(made: GroupPolicy, view: Batch, hidden: Tensor, unembedding: Tensor) -> list[Tensor]:
    """log p of the pieces of each answer, place by place, with piece 0 left out."""
    rows, said = view.rows, []
    for k in range(len(rows.of)):
        here = (rows.answer == k) & (rows.labels != IGNORE)
        logits = hidden[here] @ unembedding.T / made.temperature
        logp = logits[:, 1:].log_softmax(dim=-1)
        said.append(logp[torch.arange(len(logp)), rows.labels[here] - 1])
    return said


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_first_visit_has_the_plain_policy_gradient(by_length: bool, scaled: bool) -> None:
    """Rewards 1, 0 are advantages of ±1/2, or ±1/√2 of the deviation √(1/2); both right answers have none."""
    made = objective([8], [9, 9], [5, 6], [5], temperature=0.7, by_length=by_length, scaled=scaled)
    view = made.views(batch())
    got = outputs(view)
    losses = made(got, view)
    losses["policy"].sum.backward()
    hidden = got.hidden.detach().clone().requires_grad_()
    logs = by_hand(made, view, hidden, got.unembedding)
    size = 0.5 / (0.5**0.5 + 1e-4) if scaled else 0.5
    lengths = [2, 2] if by_length else [made.max_new] * 2
    expected = -size * logs[0].sum() / lengths[0] + size * logs[1].sum() / lengths[1]
    expected.backward()
    assert got.hidden.grad is not None
    assert hidden.grad is not None
    torch.testing.assert_close(got.hidden.grad, hidden.grad)
    assert losses["policy"].count == made.count(batch()) == 4
    told = {name.removeprefix("policy/"): loss for name, loss in losses.items()}
    assert told["reward"].sum == 3
    assert told["even"].each is not None
    assert told["even"].each.tolist() == [0, 1]
    assert told["pieces"].each is not None
    assert told["pieces"].each.tolist() == [2, 2, 2, 2]
    assert told["clipped"].sum == 0


def test_a_later_visit_is_clipped_against_the_first() -> None:
    """A piece four times as likely as when it was drawn earns no more than 1.2 times its advantage."""
    made = objective([8], [9], [5, 6], [5], scaled=False, high=0.2, low=0.1)
    view = made.views(batch((0, 2)))
    first = outputs(view)
    made(first, view)
    again = made.views(batch((1, 2)))
    assert isinstance(again, Drawn)
    assert len(made.speaker.asked) == 1  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    now = dataclasses.replace(first, hidden=first.hidden.detach() * 3)
    before = by_hand(made, view, first.hidden, first.unembedding)
    after = by_hand(made, view, now.hidden, now.unembedding)
    expected = 0.0
    for k, advantage in ((0, 0.5), (1, -0.5)):
        for ratio in (after[k] - before[k]).exp().tolist():
            clipped = min(max(ratio, 0.9), 1.2)
            expected -= min(ratio * advantage, clipped * advantage) / len(after[k])
    losses = made(now, again)
    assert float(losses["policy"].sum.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(losses["policy/clipped"].sum) > 0
    made.views(batch((0, 2), first=9))
    assert len(made.speaker.asked) == 2  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert list(made._kept) == []


def test_what_later_visits_need_is_plain_and_comes_back() -> None:
    made = objective([8], [9], [5, 6], [5])
    view = made.views(batch((0, 2)))
    made(outputs(view), view)
    other = objective()
    other.load_state_dict(made.state_dict())
    here, there = made.views(batch((1, 2))), other.views(batch((1, 2)))
    assert isinstance(there, Drawn)
    assert isinstance(here, Drawn)
    assert here.behaviour is not None
    assert there.behaviour is not None
    assert torch.equal(here.behaviour, there.behaviour)
    assert all(torch.equal(value, vars(there.rows)[name]) for name, value in vars(here.rows).items())


def test_the_divergence_from_the_reference_is_weighed() -> None:
    made = objective([8], [9], [5, 6], [5], beta=0.3)
    view = made.views(batch())
    now, then = outputs(view), outputs(view, seed=1)
    made.frozen = lambda _: then
    pairs = zip(
        by_hand(made, view, now.hidden, now.unembedding),
        by_hand(made, view, then.hidden, then.unembedding),
        strict=True,
    )
    each = [((r - p).exp() - (r - p) - 1).mean() for p, r in pairs]
    free = GroupPolicy(reward=Exact(), samples=2, max_new=2)
    free.speaker = made.speaker
    losses, without = made(now, view), free(now, view)
    expected = float(without["policy"].sum.detach()) + 0.3 * float(torch.stack(each).sum().detach())
    assert float(losses["policy"].sum.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(losses["policy/kl"].sum) == pytest.approx(float(torch.stack(each).sum().detach()), rel=1e-4)


def test_validation_is_minus_the_reward_of_the_likeliest_answer() -> None:
    made = objective([8], [9]).eval()
    losses = made(outputs(view := made.views(batch())), view)
    assert (float(losses["policy"].sum), losses["policy"].count) == (-1, 2)
    assert "policy/even" not in losses


def test_a_reward_that_is_no_number_reaches_the_loss() -> None:
    made = objective(*FOUR)
    made.reward = lambda view, said: torch.tensor([1.0, torch.nan, 0.0, 0.0])
    view = made.views(batch())
    assert torch.isnan(made(outputs(view), view)["policy"].sum)


def test_nothing_to_answer_is_a_loss_of_nothing() -> None:
    made, given = objective(), batch()
    labels = torch.where(given.rows.document >= 0, given.rows.ids, IGNORE)
    labelled = dataclasses.replace(given, rows=dataclasses.replace(given.rows, labels=labels))
    assert made.views(labelled) is labelled
    got = outputs(labelled)
    losses = made(got, labelled)
    losses["policy"].sum.backward()
    assert (float(losses["policy"].sum.detach()), losses["policy"].count, made.count(labelled)) == (0.0, 0, 0)


def test_where_nobody_speaks_every_answer_is_as_long_as_may_be() -> None:
    made = GroupPolicy(reward=Exact(), samples=3, max_new=5)
    view = made.views(batch())
    assert len(view.rows.of) == 6
    assert int((view.rows.labels != IGNORE).sum()) == 6 * 5
