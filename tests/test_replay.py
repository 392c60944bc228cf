"""Does a drawn transition of n steps hold what the n single ones held, and no more?"""

import numpy as np
import pytest
import torch

from kcpr_safety.goals import Goal
from kcpr_safety.replay import Hindsight, NStep, Replay
from kcpr_safety.transition import Batch

GAMMA = 0.9
ENVS = 2


def filled(replay: Replay, lengths: tuple[tuple[int, ...], ...], *, terminal: bool) -> Replay:
    """Environment e runs episodes of these lengths one after the other.

    Observation: (environment, number of the step); action: environment; reward: number of the
    step; punishment: 1 at even ones.
    A new episode begins at a number that none ended with.
    """
    clocks = []
    for env, episodes in enumerate(lengths):
        numbers = []
        for episode, length in enumerate(episodes):
            first = 100 * episode
            numbers += [(env, first + k, k == length - 1) for k in range(length)]
        clocks.append(numbers)
    for rows in zip(*clocks, strict=True):
        number = torch.tensor([float(n) for _, n, _ in rows])
        env = torch.tensor([float(e) for e, _, _ in rows])
        ended = torch.tensor([float(end) for _, _, end in rows])
        replay.add(
            Batch(
                obs=torch.stack([env, number], 1),
                action=env[:, None],
                reward=number.clone(),
                punishment=(number % 2 == 0).float(),
                continues=1.0 - ended if terminal else torch.ones(ENVS),
                next_obs=torch.stack([env, number + 1], 1),
            )
        )
    return replay


def n_step(steps: int, capacity: int = 100) -> NStep:
    return NStep(capacity, (2, 1, 0), "cpu", steps=steps, envs=ENVS, gamma=GAMMA)


def drawn(replay: Replay, size: int = 400) -> Batch:
    return replay.draw(size, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("capacity", [100, 13])  # 13: the ring has gone round
def test_n_steps_are_the_sum_of_single_ones(terminal: bool, capacity: int) -> None:
    lengths = ((4, 3, 5), (6, 6))
    batch = drawn(filled(n_step(3, capacity), lengths, terminal=terminal))
    ends = {(e, 100 * i + n) for e, row in enumerate(lengths) for i, n in enumerate(row)}
    seen = set()
    for obs, reward, punishment, continues, next_obs in zip(
        batch.obs.tolist(),
        batch.reward.tolist(),
        batch.punishment.tolist(),
        batch.continues.tolist(),
        batch.next_obs.tolist(),
        strict=True,
    ):
        env, start = int(obs[0]), int(obs[1])
        stop = next(n for n in range(start + 1, start + 4) if (env, n) in ends or n == start + 3)
        numbers = range(start, stop)
        assert next_obs == [env, stop]
        assert reward == pytest.approx(sum(GAMMA ** (n - start) * n for n in numbers))
        even = (GAMMA ** (n - start) for n in numbers if n % 2 == 0)
        assert punishment == pytest.approx(sum(even))
        ended = terminal and (env, stop) in ends
        assert continues == pytest.approx(0.0 if ended else GAMMA ** (stop - start - 1))
        seen.add((env, start))
    # Every row that has its steps ahead of it is drawn, and none of the two newest of each.
    assert len(seen) == (12 - 2) * ENVS if capacity == 100 else 7 * ENVS - 4
    assert not seen & {(0, 203), (0, 204), (1, 104), (1, 105)}


def test_one_step_is_the_row_itself() -> None:
    lengths = ((4, 4), (8,))
    single = filled(n_step(1), lengths, terminal=True)
    plain = filled(Replay(100, 2, 1), lengths, terminal=True)
    for a, b in zip(drawn(single)[:6], drawn(plain)[:6], strict=True):
        assert torch.equal(a, b)


def test_the_rows_themselves_stay_as_they_were() -> None:
    replay = filled(n_step(3), ((4, 4), (8,)), terminal=True)
    before = replay.rows.clone()
    drawn(replay)
    assert torch.equal(replay.rows, before)


def test_what_is_too_young_to_look_ahead_is_drawn_as_it_is() -> None:
    replay = filled(n_step(3), ((1,), (1,)), terminal=False)
    batch = drawn(replay, 8)
    assert set(batch.continues.tolist()) == {1.0}
    assert set(batch.next_obs[:, 1].tolist()) == {1.0}


def far(reached: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return -np.abs(reached - wanted)[:, 0]


def in_hindsight(share: float, capacity: int, steps: int = 1) -> Hindsight:
    """Achieved is the number of the step, desired which environment it is."""
    goal = Goal((1,), (0,), far)
    spacing = {"steps": steps, "envs": ENVS, "gamma": GAMMA}
    return Hindsight(goal, share, capacity, (2, 1, 0), "cpu", **spacing)


@pytest.mark.parametrize("capacity", [100, 14])
def test_hindsight_tells_of_every_later_goal_of_the_same_episode_and_of_no_other(
    capacity: int,
) -> None:
    lengths = ((4, 3, 5), (6, 6))
    replay = filled(in_hindsight(1.0, capacity), lengths, terminal=False)
    batch = drawn(replay, 4000)
    assert torch.equal(batch.obs[:, 0], batch.next_obs[:, 0])
    assert torch.equal(batch.reward, -(batch.next_obs[:, 1] - batch.obs[:, 0]).abs())
    assert torch.equal(batch.punishment, (batch.obs[:, 1] % 2 == 0).float())
    told: dict[tuple[int, int], set[int]] = {}
    for env, (wanted, number) in zip(
        batch.action[:, 0].int().tolist(), batch.obs.int().tolist(), strict=True
    ):
        told.setdefault((env, number), set()).add(wanted)
    for (env, number), goals in told.items():
        episode = number // 100
        assert goals == set(range(number + 1, 100 * episode + lengths[env][episode] + 1))
    assert len(told) == min(12 * ENVS, capacity)


def test_hindsight_retells_its_share_and_leaves_the_rest() -> None:
    replay = filled(in_hindsight(0.25, 100), ((4, 3, 5), (6, 6)), terminal=False)
    batch = drawn(replay, 4000)
    own = batch.reward == batch.obs[:, 1]
    assert 0.7 < float(own.float().mean()) < 0.8
    assert set(batch.obs[own, 0].tolist()) == {0.0, 1.0}
    assert not set(batch.obs[~own, 0].tolist()) & {0.0}


def test_hindsight_over_several_steps_pays_each_of_them_for_the_one_goal() -> None:
    batch = drawn(filled(in_hindsight(1.0, 100, steps=2), ((4, 3, 5), (6, 6)), terminal=False))
    for (wanted, number), reward, (_, stop) in zip(
        batch.obs.tolist(), batch.reward.tolist(), batch.next_obs.tolist(), strict=True
    ):
        first = -abs(number + 1 - wanted)
        second = -abs(number + 2 - wanted) if stop == number + 2 else 0.0
        assert reward == pytest.approx(first + GAMMA * second)


@pytest.mark.parametrize("capacity", [100, 14])
def test_a_resumed_replay_tells_the_same_in_hindsight(capacity: int) -> None:
    lengths = ((4, 3, 5), (6, 6))
    replay = filled(in_hindsight(0.5, capacity), lengths, terminal=False)
    again = in_hindsight(0.5, capacity)
    again.rows.copy_(replay.rows)
    again.take_up(replay.added)
    for one in (replay, again):
        filled(one, ((1, 1), (2,)), terminal=False)
    for a, b in zip(drawn(replay)[:6], drawn(again)[:6], strict=True):
        assert torch.equal(a, b)
