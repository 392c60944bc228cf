"""Does a drawn transition of n steps hold what the n single ones held, and no more?"""

import pytest
import torch

from kcpr_safety.replay import NStep, Replay
from kcpr_safety.transition import Batch

GAMMA = 0.9
ENVS = 2


def filled(replay: Replay, lengths: tuple[tuple[int, ...], ...], *, terminal: bool) -> Replay:
    """Environment e runs episodes of these lengths one after the other.

    Observation: (environment, number of the step); reward: its number; punishment: 1 at even ones.
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
                action=torch.zeros(ENVS, 1),
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
