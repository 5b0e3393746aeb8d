"""Tell the better of two answers from the other by a number that each has for itself: a reward model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mmfusion.objectives.functional import bradley_terry
from mmfusion.objectives.preference import Preference, pairs, tell
from mmfusion.types import Batch, Loss, Modality, Outputs, Rows


class Scoring(Protocol):
    """A tokenizer with a piece whose logit is the reward."""

    score: int


class Reward(nn.Module):
    """`functional.bradley_terry` of the rewards of pairs; which those are, `preference.pairs` says.

    The chosen answer's reward is to be higher by `margin` for each point that its score is higher. There is no head
    for it: see `reward_of_answers`.

    Beside the loss it tells, by source too: the share of pairs whose chosen answer has the higher reward (`accuracy`,
    ties are wrong), by how much (`margin`), and the rewards of both.
    """

    modalities: tuple[Modality, ...] = Preference.modalities

    def __init__(self, *, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin
        self.tokenizer: Scoring | None = None  # given by the training module

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return len(pairs(batch.rows))

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        if self.tokenizer is None:
            raise ValueError("Reward.tokenizer: is None; give the tokenizer of the data")
        rows = batch.rows
        pair = pairs(rows)  # [n, 2]
        rewards, score = reward_of_answers(outputs, rows, self.tokenizer.score)[pair], rows.score[pair]
        each = bradley_terry(rewards, self.margin * (score[:, 0] - score[:, 1]))
        chosen, rejected = rewards.detach().unbind(dim=1)
        told = {
            "accuracy": (chosen > rejected).to(chosen.dtype),
            "margin": chosen - rejected,
            "chosen": chosen,
            "rejected": rejected,
        }
        owner = rows.owner[rows.of[pair[:, 0]]]
        return {"reward": Loss(each.sum(), len(pair), each.detach(), owner), **tell("reward", told, owner)}


def reward_of_answers(outputs: Outputs, rows: Rows, piece: int) -> Tensor:
    """[K], of each answer the logit of `piece` at its last place, where all of it has been read.

    A linear map of the hidden state, as a reward head is (Ouyang et al. 2203.02155, section 3.5), whose weights stand
    in the embedding: a checkpoint has them, and a converter treats them, like any other.
    """
    answer = rows.answer.flatten()
    places = torch.nonzero(answer >= 0)[:, 0]
    last = torch.zeros_like(rows.of).scatter_reduce(0, answer[places], places, "amax")
    return (outputs.hidden.flatten(0, 1)[last] * outputs.unembedding[piece]).sum(dim=-1)
