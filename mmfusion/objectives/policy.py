"""Let the model answer, reward what it says, and make what was rewarded likelier: reinforcement learning in groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from mmfusion.objectives.functional import clipped_policy_loss, group_advantage, log_probability, reverse_kl
from mmfusion.objectives.preference import Preference, answer_places, of_answers, tell
from mmfusion.ranks import of_all
from mmfusion.rows import answered, prompts, standing_open
from mmfusion.types import Batch, Loss, Modality, Outputs, Rows
from mmfusion.wording import says


class Reward(Protocol):
    """What answers are worth, [K]: `view` is the batch with the answers in its rows, `said` are their texts."""

    def __call__(self, view: Batch, said: Sequence[str]) -> Tensor: ...


class Exact:
    """1 for an answer that is one of the wordings its prompt's check gives, but for case and blanks; else 0."""

    def __call__(self, view: Batch, said: Sequence[str]) -> Tensor:
        right = []
        for owner in view.rows.owner[view.rows.of].tolist():
            check = view.checks[owner]
            if check is None:
                raise ValueError(
                    f"objective: an exact reward needs a check, which the prompt {view.keys[owner]!r} lacks"
                )
            right.append(check.splitlines())
        found = [float(says(one, wordings)) for one, wordings in zip(said, right, strict=True)]
        return torch.tensor(found, device=view.rows.ids.device)


class Speaker(Protocol):
    """Draws pieces to a batch's prompts; see `training.speaker`."""

    end: int
    banned: Sequence[int]

    def __call__(self, batch: Batch, **how: Any) -> list[list[int]]: ...

    def text(self, pieces: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Drawn(Batch):
    """A batch whose documents are prompts with the answers that were drawn, the reward of each as its score.

    behaviour[n]: log-probabilities of the n labelled pieces as they were drawn; None where the model is still the same.
    """

    behaviour: Tensor | None = None


class GroupPolicy(nn.Module):
    """Group relative policy optimization (GRPO; Shao et al. 2402.03300): of several answers to one prompt those that
    are better rewarded than their mean become likelier, piece by piece.

    A prompt is a document that stands open; others are left alone. In a batch's first visit (`data.visits`) the model
    draws `samples` answers of at most `max_new` pieces to each prompt, at a `temperature`. Every probability here is of
    the distribution that is drawn from: at that temperature, without the pieces that are never said. The probabilities
    that clipping compares with are those of the first visit's own forward. In it their ratio is 1, and the loss has the
    plain policy gradient: with one visit nothing is ever clipped, whatever `low` and `high` are.

    `scaled` divides by the deviation in the group, and `by_length` takes the mean over an answer's pieces, as GRPO
    does; without both (Dr. GRPO; Liu et al. 2503.20783) no prompt and no length has more weight than another, since
    sums over pieces are divided by the constant `max_new`. `high` above `low` is DAPO's clip-higher (Yu et al.
    2503.14476). `beta` weighs the divergence from the reference, the model as it was at the start; at 0 none is kept.

    In validation the model gives its likeliest answer to each prompt, and the loss is minus its reward.

    Beside the loss it tells, by source too: the `reward`, the share of groups without any difference, which teach
    nothing (`even`), an answer's `pieces`, and at each of these the `entropy`, the share that was `clipped`, and the
    divergence from the reference (`kl`); the last three are means over answers, in nats.
    """

    modalities: tuple[Modality, ...] = Preference.modalities
    embeddings: tuple[Modality, ...] = ()

    def __init__(
        self,
        *,
        reward: Reward,
        samples: Annotated[int, Ge(2)] = 8,
        max_new: Annotated[int, Gt(0)] = 24,
        temperature: Annotated[float, Gt(0)] = 1.0,
        beta: Annotated[float, Ge(0)] = 0.0,
        low: Annotated[float, Gt(0)] = 0.2,
        high: Annotated[float, Gt(0)] = 0.2,
        scaled: bool = True,
        by_length: bool = True,
    ) -> None:
        super().__init__()
        self.reward, self.samples, self.max_new, self.temperature = reward, samples, max_new, temperature
        self.beta, self.low, self.high, self.scaled, self.by_length = beta, low, high, scaled, by_length
        self.reference = beta > 0
        self.frozen: Callable[[Batch], Outputs] | None = None  # both are given by the training module
        self.speaker: Speaker | None = None
        self._kept: dict[tuple[int, ...], tuple[Rows, Tensor]] = {}  # for later visits, by the batch's seeds
        self._visit = 0

    def views(self, batch: Batch) -> Batch:
        asked = prompts(batch.rows)
        if not len(asked.owner):
            return batch
        if not self.training:
            return self._drawn(batch, asked, samples=1, temperature=0.0)
        visit, _ = batch.visit
        if visit < self._visit:
            self._kept.clear()
        self._visit = visit
        if visit and (kept := self._kept.get(_key(batch))):
            device = asked.ids.device
            return _as_drawn(batch, kept[0].to(device), kept[1].to(device))
        seeds = batch.seeds[asked.owner].tolist()
        return self._drawn(batch, asked, samples=self.samples, temperature=self.temperature, seeds=seeds)

    def _drawn(self, batch: Batch, asked: Rows, samples: int, **how: Any) -> Drawn:
        """The answers to the prompts that were asked, with their rewards."""
        if self.speaker is None:  # nobody can speak where a step is only counted: every answer is as long as may be
            made_up = [[0] * self.max_new] * (samples * len(asked.owner))
            return _as_drawn(batch, answered(asked, made_up))
        said = self.speaker(dataclasses.replace(batch, rows=asked), max_new=self.max_new, samples=samples, **how)
        ended = [[*pieces, self.speaker.end] if len(pieces) < self.max_new else pieces for pieces in said]
        view = _as_drawn(batch, answered(asked, ended))
        reward = self.reward(view, [self.speaker.text(pieces) for pieces in said])
        return _as_drawn(batch, dataclasses.replace(view.rows, score=reward))

    def count(self, batch: Batch) -> int:
        return self.samples * int(standing_open(batch.rows).sum())

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        if not isinstance(batch, Drawn):
            nothing = outputs.hidden[:0, 0] @ outputs.unembedding.T  # zeros, as gradients too
            return {"policy": Loss(nothing.sum() + outputs.hidden.sum() * 0, 0)}
        rows = batch.rows
        places = answer_places(rows)
        said, of = rows.labels[places][:, None], rows.answer[places]
        now = self._next_pieces(outputs, rows)  # [n, V]
        policy = now.gather(1, said)[:, 0]
        behaviour = policy.detach() if batch.behaviour is None else batch.behaviour
        self._keep(batch, behaviour)
        groups = rows.score.view(len(rows.owner), -1)
        each, told = torch.zeros_like(policy), {"entropy": torch.special.entr(now.detach().exp()).sum(dim=-1)}
        if self.training:
            advantage = group_advantage(groups, scaled=self.scaled).flatten()[of]
            each = clipped_policy_loss(policy, behaviour, advantage, low=self.low, high=self.high)
            told["clipped"] = (each > -(policy - behaviour).exp() * advantage).to(each.dtype).detach()
        if self.frozen is not None:
            with torch.no_grad():
                reference = self._next_pieces(self.frozen(batch), rows).gather(1, said)[:, 0]
            divergence = reverse_kl(policy, reference)
            each, told["kl"] = each + self.beta * divergence, divergence.detach()
        length = of_answers(torch.ones_like(policy), rows)
        loss = of_answers(each, rows) / (length if self.by_length else self.max_new)
        if not self.training:
            loss = -rows.score
        owner = rows.owner[rows.of]
        per_answer = {name: of_answers(values, rows) / length for name, values in told.items()}
        losses = {
            "policy": Loss(loss.sum(), len(loss), loss.detach(), owner),
            **tell("policy", {"reward": rows.score, "pieces": length, **per_answer}, owner),
        }
        if self.training:
            even = (groups == groups[:, :1]).all(dim=1).to(loss.dtype)
            losses.update(tell("policy", {"even": even}, rows.owner))
        return losses

    def _next_pieces(self, outputs: Outputs, rows: Rows) -> Tensor:
        """log p of every piece at the n labelled places, as they are drawn, [n, V]."""
        banned = () if self.speaker is None else self.speaker.banned
        hidden = outputs.hidden[answer_places(rows)]
        return log_probability(hidden, outputs.unembedding, temperature=self.temperature, banned=banned)

    def _keep(self, batch: Drawn, behaviour: Tensor) -> None:
        """What was drawn, where the next visits need it."""
        visit, visits = batch.visit
        if self.training and visit + 1 < visits:
            self._kept[_key(batch)] = batch.rows, behaviour

    def get_extra_state(self) -> dict[str, Any]:
        """Plain, for a loader that takes nothing else; a run that goes on between two visits needs it, of all ranks."""
        kept = [(list(key), dict(vars(rows.to("cpu"))), said.cpu()) for key, (rows, said) in self._kept.items()]
        return {"visit": self._visit, "kept": [one for of_rank in of_all(kept) for one in of_rank]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._visit = state["visit"]
        self._kept = {tuple(key): (Rows(**rows), behaviour) for key, rows, behaviour in state["kept"]}


def _key(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.seeds.tolist())


def _as_drawn(batch: Batch, rows: Rows, behaviour: Tensor | None = None) -> Drawn:
    return Drawn(**{**vars(batch), "rows": rows, "behaviour": behaviour})
