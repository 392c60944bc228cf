"""What finite MDPs do tests draw?"""

import torch

from kcpr_safety.agents.tabular import MDP


def random_mdp(
    seed: int,
    *,
    states: int = 6,
    actions: int = 3,
    gamma: float = 0.9,
    deterministic: bool = False,
) -> MDP:
    """Rewards and punishments uniform in [0, 1); dense or deterministic transitions."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    if deterministic:
        following = torch.randint(states, (states, actions), generator=generator)
        transition = torch.nn.functional.one_hot(following, states).double()
    else:
        transition = uniform(states, actions, states)
        transition = transition / transition.sum(-1, keepdim=True)
    return MDP(transition, uniform(states, actions), uniform(states, actions), gamma)


def two_states() -> MDP:
    """The smallest MDP known on which the undamped joint iteration cycles (b 0.6, h 5 and 5)."""
    transition = torch.zeros(2, 2, 2, dtype=torch.float64)
    for state, following in enumerate([[1, 0], [0, 1]]):
        for action, there in enumerate(following):
            transition[state, action, there] = 1.0
    reward = torch.tensor([[0.5, 0.7], [0.8, 0.2]], dtype=torch.float64)
    punishment = torch.tensor([[0.1, 0.9], [0.3, 0.7]], dtype=torch.float64)
    return MDP(transition, reward, punishment, 0.95)
