"""Where do transitions wait to be learned from, and how is a batch drawn?

One float32 row per transition, both streams side by side:
[obs | action | reward | punishment | continues | next_obs | streams], `continues` = 1 - terminated
(truncation bootstraps), `streams` the parts of the punishment that have budgets of their own.
Storing N environments' step is one block copy and drawing a batch is one gather of rows into a
buffer that is used again.

`NStep` draws transitions of several steps out of the same rows. `Hindsight` tells some of them as
if another goal had been meant.

`Divided` is two buffers in one ring: a mark at the end of each row says which one it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kcpr_safety.goals import Goal
from kcpr_safety.transition import Batch


@dataclass(frozen=True)
class Layout:
    """Column slices of one row."""

    obs_size: int
    action_size: int
    streams: int = 0

    @property
    def width(self) -> int:
        return 2 * self.obs_size + self.action_size + 3 + self.streams

    def read(self, rows: Float[Tensor, "batch width"]) -> Batch:
        """Views of the columns."""
        sizes = [self.obs_size, self.action_size, 3, self.obs_size, self.streams]
        obs, action, scalars, next_obs, streams = torch.split(rows, sizes, dim=1)
        reward, punishment, continues = scalars.unbind(1)
        parts = streams if self.streams else None
        return Batch(obs, action, reward, punishment, continues, next_obs, parts)


class Replay:
    """Ring buffer of the last `capacity` transitions."""

    def __init__(
        self,
        capacity: int,
        obs_size: int,
        action_size: int,
        device: torch.device | str = "cpu",
        *,
        streams: int = 0,
        marks: int = 0,
    ) -> None:
        """`marks` columns stand at the end of each row, beside what a batch holds."""
        self.layout = Layout(obs_size, action_size, streams)
        self.rows = torch.zeros(capacity, self.layout.width + marks, device=device)
        self.added = 0
        """Transitions ever added; the newest stands in row (added - 1) % capacity."""
        self._drawn = torch.empty(0, self.rows.shape[1], device=device)

    def __len__(self) -> int:
        return min(self.added, self.rows.shape[0])

    def add(self, batch: Batch) -> None:
        """Store N transitions, overwriting the oldest."""
        self._write(batch)

    def _write(self, batch: Batch, *marks: Float[Tensor, "batch 1"]) -> None:
        scalars = torch.stack([batch.reward, batch.punishment, batch.continues], dim=1)
        parts = [] if batch.streams is None else [batch.streams]
        rows = torch.cat([batch.obs, batch.action, scalars, batch.next_obs, *parts, *marks], dim=1)
        rows = rows.to(self.rows.device)
        capacity, start = self.rows.shape[0], self.added % self.rows.shape[0]
        first = min(rows.shape[0], capacity - start)
        self.rows[start : start + first] = rows[:first]
        self.rows[: rows.shape[0] - first] = rows[first:]
        self.added += rows.shape[0]

    def take_up(self, added: int) -> None:
        """Continue with the rows that stand here, as after `added` transitions."""
        self.added = added

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Uniform batch with replacement; valid until the next draw."""
        return self.gather(torch.randint(len(self), (size,), generator=generator))

    def gather(self, index: Int[Tensor, "batch"]) -> Batch:
        """The named rows; valid until the next draw."""
        if self._drawn.shape[0] != index.shape[0]:
            self._drawn = self.rows.new_empty(index.shape[0], self.rows.shape[1])
        torch.index_select(self.rows, 0, index.to(self.rows.device), out=self._drawn)
        return self.layout.read(self._drawn[:, : self.layout.width])


class NStep(Replay):
    """Draws transitions of up to n steps, in the form of one.

    From row i of one of N environments, whose next steps stand N rows apart,

        reward     sum_k gamma^k r_k      next_obs   after the last step taken
        punishment sum_k gamma^k c_k      continues  gamma^(last k) (1 - terminated)

    (streams as the punishment) over the steps k = 0 .. n - 1 that the episode still had, so that a
    target of the usual form, reward + gamma continues V(next_obs), looks n steps ahead. An episode
    ends where the next row does not begin with the observation that this one ended with.
    """

    def __init__(
        self,
        capacity: int,
        sizes: tuple[int, int, int],
        device: torch.device | str,
        *,
        steps: int,
        envs: int,
        gamma: float,
    ) -> None:
        """`sizes` of observation, action, streams; `envs` transitions are stored at a time."""
        # Whole steps of all environments, so that a row's successor is always N rows on.
        rows = -(-capacity // envs) * envs
        super().__init__(rows, *sizes[:2], device, streams=sizes[2])
        self.steps, self.envs, self.gamma = steps, envs, gamma

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Uniform batch with replacement; valid until the next draw."""
        behind = min((self.steps - 1) * self.envs, len(self) - 1)
        drawn = torch.randint(len(self) - behind, (size,), generator=generator)
        oldest = self.added - len(self)
        index = (drawn + oldest) % self.rows.shape[0] if oldest else drawn
        batch = self.gather(index)
        self._look_ahead(drawn + oldest, generator)
        self._tell(batch)
        if self.steps == 1:
            return batch
        # Views of the drawn buffer: what is written here is what the batch holds.
        going = batch.continues.clone()
        for ahead in range(1, self.steps):
            last = drawn + oldest + ahead * self.envs >= self.added
            following = (index + ahead * self.envs) % self.rows.shape[0]
            row = self.layout.read(self.rows.index_select(0, following.to(self.rows.device)))
            self._tell(row)
            going *= (batch.next_obs == row.obs).all(1)
            going.masked_fill_(last.to(going.device), 0.0)
            discount = self.gamma**ahead
            batch.reward.addcmul_(going, row.reward, value=discount)
            batch.punishment.addcmul_(going, row.punishment, value=discount)
            if batch.streams is not None and row.streams is not None:
                batch.streams.addcmul_(going[:, None], row.streams, value=discount)
            taken = going.bool()
            batch.continues.copy_(torch.where(taken, discount * row.continues, batch.continues))
            batch.next_obs.copy_(torch.where(taken[:, None], row.next_obs, batch.next_obs))
            going *= row.continues
        return batch

    def _look_ahead(self, drawn: Int[Tensor, "batch"], generator: torch.Generator) -> None:
        """For children: these transitions, counted from the first ever, were drawn."""

    def _tell(self, row: Batch) -> None:
        """For children: change what the drawn transitions, or those that follow them, say."""


class Hindsight(NStep):
    """Some drawn transitions tell of a goal that their episode reached later (HER, "future").

    Observations then hold that goal as the desired one, and the reward is that of having meant it.
    Punishments stay: what was suffered on the way does not depend on what was wanted. `continues`
    stays, too, so it is meant for tasks that go on at their goal.
    """

    def __init__(
        self,
        goal: Goal,
        share: float,
        capacity: int,
        sizes: tuple[int, int, int],
        device: torch.device | str,
        **spacing: Any,
    ) -> None:
        """`share` of what is drawn is retold; the rest as for `NStep`."""
        super().__init__(capacity, sizes, device, **spacing)
        self.goal, self.share = goal, share
        self._last = np.full(self.rows.shape[0], -1)
        """Last transition of each row's episode, counted from the first ever; -1: it goes on."""
        self._begun = np.zeros(self.envs, dtype=np.int64)
        """First transition of the episode that each environment is in."""
        self._retold = torch.empty(0, dtype=torch.bool)
        self._goals = torch.empty(0)

    def add(self, batch: Batch) -> None:
        """Store a step of all environments."""
        self._follow(self.added, batch.obs.to(self.rows.device))
        super().add(batch)

    def take_up(self, added: int) -> None:
        super().take_up(added)
        oldest = added - len(self)
        self._begun = oldest + np.arange(self.envs)
        self._last[:] = -1
        for first in range(oldest + self.envs, added, self.envs):
            place = first % self.rows.shape[0]
            self._follow(first, self.layout.read(self.rows[place : place + self.envs]).obs)

    def _follow(self, first: int, obs: Float[Tensor, "envs obs"]) -> None:
        """Episodes that do not go on with these observations of transition `first` have ended."""
        capacity, envs = self.rows.shape[0], self.envs
        self._last[first % capacity : first % capacity + envs] = -1
        if first == 0:
            self._begun = np.arange(envs)
            return
        before = (first - envs) % capacity
        held = self.layout.read(self.rows[before : before + envs]).next_obs
        for env in torch.nonzero((held != obs).any(1)).ravel().tolist():
            steps = np.arange(self._begun[env], first, envs) % capacity
            self._last[steps] = first - envs + env
            self._begun[env] = first + env

    def _look_ahead(self, drawn: Int[Tensor, "batch"], generator: torch.Generator) -> None:
        index = drawn.numpy()
        last = self._last[index % self.rows.shape[0]]
        last = np.where(last < 0, self.added - self.envs + index % self.envs, last)
        chance = torch.rand(2, len(index), generator=generator)
        steps = torch.as_tensor((last - index) // self.envs + 1)
        ahead = torch.minimum((chance[0] * steps).long(), steps - 1)
        reached = ((drawn + ahead * self.envs) % self.rows.shape[0]).to(self.rows.device)
        later = self.layout.read(self.rows.index_select(0, reached)).next_obs
        self._goals = later[:, list(self.goal.achieved)]
        self._retold = (chance[1] < self.share).to(self.rows.device)

    def _tell(self, row: Batch) -> None:
        goal, desired = self.goal, list(self.goal.desired)
        now = row.next_obs[:, list(goal.achieved)]
        paid = torch.as_tensor(goal.reward(now.cpu().numpy(), self._goals.cpu().numpy()))
        row.reward.copy_(torch.where(self._retold, paid.to(row.reward), row.reward))
        for obs in (row.obs, row.next_obs):
            obs[:, desired] = torch.where(self._retold[:, None], self._goals, obs[:, desired])


class Divided(Replay):
    """Two buffers: `route` says of each transition whether it goes into the second.

    A `balanced` draw takes half from each, for both modules alike. Otherwise each module has its
    own: the draw is twice as long, the first buffer's transitions, then the second's. While one is
    empty the other stands in for it.
    """

    def __init__(
        self,
        capacity: int,
        obs_size: int,
        action_size: int,
        route: Callable[[Batch], Bool[Tensor, "batch"]],
        *,
        balanced: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(capacity, obs_size, action_size, device, marks=1)
        self.route, self.balanced = route, balanced
        # What leaves the ring is the oldest of all, hence of its buffer: each is a queue, and its
        # order follows from the ring alone.
        self._queues = np.zeros((2, capacity), dtype=np.int64)
        """Rows of each buffer, oldest first, from `_first` on and around."""
        self._first = [0, 0]
        self._counts = [0, 0]
        self._buffer = np.full(capacity, -1, dtype=np.int8)
        """Which buffer each row is in; -1 before it is written."""

    def add(self, batch: Batch) -> None:
        """Store N transitions, each in its buffer."""
        second = self.route(batch)
        start = self.added
        self._write(batch, second[:, None].to(torch.float32))
        for i, mark in enumerate(second.tolist()):
            self._assign((start + i) % self.rows.shape[0], int(mark))

    def take_up(self, added: int) -> None:
        super().take_up(added)
        capacity = self.rows.shape[0]
        rows = np.arange(added - len(self), added) % capacity
        self._first, self._counts = [0, 0], [0, 0]
        self._buffer[:] = -1
        for row, mark in zip(rows.tolist(), self.rows[rows, -1].tolist(), strict=True):
            self._assign(row, int(mark))

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """See the class; valid until the next draw."""
        sizes = (size - size // 2, size // 2) if self.balanced else (size, size)
        parts = []
        for buffer, count in enumerate(sizes):
            chosen = buffer if self._counts[buffer] else 1 - buffer
            drawn = torch.randint(self._counts[chosen], (count,), generator=generator)
            places = (self._first[chosen] + drawn.numpy()) % self.rows.shape[0]
            parts.append(torch.as_tensor(self._queues[chosen][places]))
        return self.gather(torch.cat(parts))

    def _assign(self, row: int, buffer: int) -> None:
        """A row that was just written, the oldest until now, goes to the end of a queue."""
        capacity, old = self.rows.shape[0], self._buffer[row]
        if old >= 0:
            self._first[old] = (self._first[old] + 1) % capacity
            self._counts[old] -= 1
        self._queues[buffer, (self._first[buffer] + self._counts[buffer]) % capacity] = row
        self._counts[buffer] += 1
        self._buffer[row] = buffer
