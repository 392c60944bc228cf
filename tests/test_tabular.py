"""Is the exact solution of a finite MDP that of KCSO, and does it refuse where it has none?"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mdps import random_mdp, two_states

from kcpr_safety.agents.tabular import (
    MDP,
    Coupling,
    Pair,
    alternate,
    backup,
    deployed_actions,
    policy_values,
    solve,
    sweeps,
)
from kcpr_safety.errors import SettingsError, TrainingFault
from kcpr_safety.ops.coupling import (
    coupled_policies,
    coupled_values,
    kl_divergence,
    soft_value,
    soften,
)

seeds = st.integers(0, 10_000)
softenings = st.floats(0.0, 0.97)
sharp = st.floats(0.1, 10.0)
signed = st.one_of(st.floats(-10.0, -0.05), st.floats(0.05, 10.0))


def draw(seed: int, states: int = 6, actions: int = 3) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, states, actions, generator=generator, dtype=torch.float64)
    return Pair(both[0], both[1])


# ------------------------------------------------------------------------ one state: closed form


@given(seeds, st.floats(0.0, 0.95), signed, signed)
@settings(max_examples=30)
def test_fixed_point_iteration_ends_at_the_closed_form(
    seed: int, softening: float, reward_h: float, punishment_h: float
) -> None:
    q, coupling = draw(seed), Coupling(reward_h, punishment_h, softening)
    closed = coupled_policies(*q, *coupling.numbers)
    torch.testing.assert_close(alternate(q, coupling), closed, atol=1e-9, rtol=1e-11)


@given(seeds, softenings, signed, signed)
def test_values_by_log_sum_exp_are_those_of_each_module_under_its_softened_companion(
    seed: int, softening: float, reward_h: float, punishment_h: float
) -> None:
    q, coupling = draw(seed), Coupling(reward_h, punishment_h, softening)
    policies = coupled_policies(*q, *coupling.numbers)
    values = coupled_values(*q, *coupling.numbers)
    for i, h in enumerate((reward_h, punishment_h)):
        alone = soft_value(q[i], soften(policies[1 - i], softening), h)
        torch.testing.assert_close(values[i], alone, atol=1e-9, rtol=1e-9)


@given(seeds, softenings, signed, signed, st.floats(-20.0, 20.0))
def test_a_constant_moves_its_own_value_and_nothing_else(
    seed: int, softening: float, reward_h: float, punishment_h: float, constant: float
) -> None:
    q, numbers = draw(seed), (reward_h, punishment_h, softening)
    before, after = coupled_values(*q, *numbers), coupled_values(q[0] + constant, q[1], *numbers)
    close = {"atol": 1e-7, "rtol": 1e-9}
    torch.testing.assert_close(after, (before[0] + constant, before[1]), **close)
    moved = coupled_policies(q[0], q[1] + constant, *numbers)
    torch.testing.assert_close(moved, coupled_policies(*q, *numbers), **close)


# Where both temperature and softening go to their ends, it is their product that counts.
none_or_some = st.just(0.0) | st.floats(1e-2, 0.9)


@given(seeds, none_or_some, st.sampled_from([(1, 1), (1, -1), (-1, 1)]))
def test_two_infinite_temperatures_are_the_limit_of_large_ones(
    seed: int, softening: float, signs: tuple[int, int]
) -> None:
    q = draw(seed)
    large = coupled_values(*q, signs[0] * 1e7, signs[1] * 1e7, softening)
    limit = coupled_values(*q, signs[0] * math.inf, signs[1] * math.inf, softening)
    torch.testing.assert_close(limit, large, atol=1e-5, rtol=0)
    greedy = coupled_policies(*q, signs[0] * math.inf, signs[1] * math.inf, softening)
    sharp_ones = coupled_policies(*q, signs[0] * 1e7, signs[1] * 1e7, softening)
    for a, b in zip(greedy, sharp_ones, strict=True):
        assert torch.equal(a.argmax(-1), b.argmax(-1))
        assert a.exp().amax(-1).allclose(torch.ones(6, dtype=torch.float64))


@given(seeds, none_or_some, signed)
def test_one_infinite_temperature_is_the_limit_of_a_large_one(
    seed: int, softening: float, finite: float
) -> None:
    q = draw(seed)
    for order in (1, -1):
        large, limit = ((h, finite)[::order] for h in (1e8, math.inf))
        torch.testing.assert_close(
            coupled_values(*q, *limit, softening),
            coupled_values(*q, *large, softening),
            atol=1e-5,
            rtol=0,
        )


@given(seeds, st.floats(0.0, 0.9), signed)
def test_temperature_zero_is_the_mean_under_the_prior(
    seed: int, softening: float, other: float
) -> None:
    q = draw(seed)
    exact, near = (coupled_values(*q, h, other, softening) for h in (0.0, 1e-7))
    torch.testing.assert_close(exact, near, atol=1e-5, rtol=0)
    reward, punishment = coupled_policies(*q, 0.0, other, softening)
    torch.testing.assert_close(reward, soften(punishment, softening))


@given(seeds, sharp)
def test_with_the_companion_fixed_values_contract_and_are_monotone(seed: int, h: float) -> None:
    mdp, q, other = random_mdp(seed), draw(seed)[0], draw(seed + 1)[0]
    prior = torch.log_softmax(draw(seed + 2)[0], -1)

    def one_backup(values: torch.Tensor) -> torch.Tensor:
        return mdp.reward + mdp.gamma * mdp.transition @ soft_value(values, prior, h)

    moved = (one_backup(q) - one_backup(other)).abs().max()
    assert moved <= mdp.gamma * (q - other).abs().max() + 1e-12
    higher = one_backup(torch.maximum(q, other))
    assert (higher >= one_backup(q) - 1e-12).all()


# ------------------------------------------------------------------------------- the whole MDP


@given(seeds, st.floats(0.0, 0.9), sharp, sharp)
@settings(max_examples=6)
def test_a_solution_satisfies_both_regularised_bellman_equations(
    seed: int, softening: float, reward_h: float, punishment_h: float
) -> None:
    """V is what its policy earns, minus its KL to the companion's prior, by a linear solve."""
    mdp = random_mdp(seed, gamma=0.8, deterministic=seed % 2 == 0)
    solution = solve(mdp, Coupling(reward_h, punishment_h, softening)).oracle()
    policies, values = solution.policies, solution.values
    for i, (stream, h) in enumerate(((mdp.reward, reward_h), (-mdp.punishment, punishment_h))):
        charge = kl_divergence(policies[i], soften(policies[1 - i], softening)) / h
        charged = replace(mdp, reward=stream - charge[:, None])
        earned, _ = policy_values(charged, policies[i].exp())
        torch.testing.assert_close(earned, values[i], atol=1e-7, rtol=1e-7)


@given(seeds, sharp, sharp)
@settings(max_examples=6)
def test_no_softening_is_soft_value_iteration_of_each_stream(
    seed: int, reward_h: float, punishment_h: float
) -> None:
    mdp = random_mdp(seed, gamma=0.8, deterministic=True)
    solution = solve(mdp, Coupling(reward_h, punishment_h, 0.0), step=0.5).oracle()
    for stream, h, value in zip(
        (mdp.reward, -mdp.punishment), (reward_h, punishment_h), solution.values, strict=True
    ):
        expected = torch.zeros(6, dtype=torch.float64)
        for _ in range(150):
            q = stream + mdp.gamma * mdp.transition @ expected
            expected = torch.log((h * q).exp().mean(-1)) / h
        torch.testing.assert_close(value, expected, atol=1e-8, rtol=1e-8)


@given(seeds)
@settings(max_examples=5)
def test_uncoupled_at_infinity_is_the_best_of_all_policies(seed: int) -> None:
    """Brute force over every deterministic policy: Q_R maximal, punishment minimal."""
    mdp = random_mdp(seed, states=4, actions=2)
    solution = solve(mdp, Coupling(math.inf, math.inf, 0.0), step=1.0).oracle()
    rows = [
        torch.nn.functional.one_hot(torch.tensor(choice), 2).double()
        for choice in itertools.product(range(2), repeat=4)
    ]
    earned = [policy_values(mdp, row) for row in rows]
    best = torch.stack([reward for reward, _ in earned]).amax(0)
    least = torch.stack([punishment for _, punishment in earned]).amin(0)
    torch.testing.assert_close(solution.values, (best, -least), atol=1e-8, rtol=0)


def test_pain_seeking_is_a_negative_temperature() -> None:
    mdp = random_mdp(3, states=4, actions=2)
    seeking = solve(mdp, Coupling(5.0, -math.inf, 0.0)).oracle().values[1]
    avoiding = solve(mdp, Coupling(5.0, math.inf, 0.0)).oracle().values[1]
    assert (seeking < avoiding).all()


# ---------------------------------------------------------------------------------- convergence


@given(seeds, st.floats(0.0, 0.9), sharp, sharp, st.booleans())
def test_the_joint_operator_keeps_to_its_bound(
    seed: int, softening: float, reward_h: float, punishment_h: float, deterministic: bool
) -> None:
    mdp = random_mdp(seed, gamma=0.95, deterministic=deterministic)
    coupling = Coupling(reward_h, punishment_h, softening)

    def scaled(pair: Pair) -> Pair:
        return Pair(reward_h * pair.reward, punishment_h * pair.punishment)

    q, other = draw(seed), draw(seed + 1)
    moved = scaled(backup(mdp, q, coupling)).gap(scaled(backup(mdp, other, coupling)))
    bound = mdp.gamma * (1.0 + softening) / (1.0 - softening)
    assert moved <= bound * scaled(q).gap(scaled(other)) + 1e-9


@given(seeds, sharp, sharp)
@settings(max_examples=15)
def test_below_the_bound_the_undamped_iteration_converges(
    seed: int, reward_h: float, punishment_h: float
) -> None:
    gamma = 0.7
    softening = 0.99 * (1.0 - gamma) / (1.0 + gamma)
    mdp = random_mdp(seed, gamma=gamma, deterministic=True)
    solution = solve(mdp, Coupling(reward_h, punishment_h, softening), step=1.0)
    assert solution.converged


def test_the_two_state_example_cycles_undamped_and_is_no_oracle() -> None:
    solution = solve(two_states(), Coupling(5.0, 5.0, 0.6), step=1.0)
    assert not solution.converged
    assert solution.cycle == 2
    assert solution.residual == pytest.approx(0.557, abs=5e-4)
    with pytest.raises(
        TrainingFault, match=r"no oracle: caught in a cycle of 2 .* residual 0\.557"
    ):
        solution.oracle()


def test_damping_solves_the_two_state_example_to_the_last_bit() -> None:
    solution = solve(two_states(), Coupling(5.0, 5.0, 0.6), tolerance=1e-14)
    assert solution.oracle().residual <= 1e-14


def test_a_solution_that_ran_out_of_sweeps_is_no_oracle() -> None:
    solution = solve(random_mdp(1), Coupling(1.0, 1.0, 0.5), most_sweeps=3)
    assert solution.sweeps == 3 and solution.cycle is None
    with pytest.raises(TrainingFault, match="not converged after 3 sweeps"):
        solution.oracle()


@given(seeds, st.floats(0.3, 0.95))
@settings(max_examples=6)
def test_damping_solves_deterministic_mdps(seed: int, softening: float) -> None:
    mdp = random_mdp(seed, deterministic=True)
    assert solve(mdp, Coupling(5.0, 5.0, softening), tolerance=1e-6).converged


def test_the_deployed_action_weighs_punishment_by_lambda() -> None:
    q, coupling = draw(4), Coupling(2.0, 3.0, 0.5)
    expected = (2.0 * q.reward + 0.5 * 3.0 * q.punishment).argmax(-1)
    assert torch.equal(deployed_actions(q, coupling), expected)


def test_equal_sharpness_means_equal_eta() -> None:
    coupling = Coupling.at_eta(8.0, 0.5)
    assert coupling.reward_temperature / (1 - 0.5**2) == pytest.approx(8.0)


# ------------------------------------------------------------------------------------ bad input


def broken(**changed: torch.Tensor | float) -> None:
    mdp = random_mdp(1)
    parts = {name: getattr(mdp, name) for name in ("transition", "reward", "punishment", "gamma")}
    MDP(**{**parts, **changed})  # type: ignore[arg-type]


def test_a_tensor_that_is_not_stochastic_is_refused() -> None:
    transition = random_mdp(1).transition.clone()
    transition[3, 1] *= 0.9
    with pytest.raises(SettingsError, match=r"not stochastic: state 3, action 1 sums to 0\.9"):
        broken(transition=transition)
    transition = random_mdp(1).transition.clone()
    transition[2, 0, 0] -= 2.0
    transition[2, 0, 1] += 2.0
    with pytest.raises(SettingsError, match="not stochastic: state 2, action 0"):
        broken(transition=transition)


def test_other_tensors_that_make_no_mdp_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"\[S, A, S\]"):
        broken(reward=torch.zeros(2, 2))
    with pytest.raises(SettingsError, match="negative"):
        broken(punishment=-random_mdp(1).punishment)
    with pytest.raises(SettingsError, match="reward holds a number that is not finite"):
        broken(reward=torch.full((6, 3), math.nan))
    with pytest.raises(SettingsError, match="gamma is 1"):
        broken(gamma=1.0)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((1.0, 1.0, 1.0), r"softening is 1\.0"),
        ((1.0, 1.0, -0.1), r"softening is -0\.1"),
        ((1.0, 1.0, math.nan), "softening is nan"),
        ((math.nan, 1.0, 0.5), "inverse temperature is NaN"),
        ((1.0, math.nan, 0.5), "inverse temperature is NaN"),
    ],
)
def test_numbers_outside_their_range_are_refused(
    numbers: tuple[float, float, float], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Coupling(*numbers)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(SettingsError, match="needs finite inverse temperatures"):
        alternate(draw(1), Coupling(math.inf, 1.0, 0.5))
    with pytest.raises(SettingsError, match=r"step is 0\.0"):
        next(sweeps(random_mdp(1), Coupling(1.0, 1.0, 0.5), 0.0))
