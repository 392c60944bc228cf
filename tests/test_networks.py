"""Does the hand-written backward pass of the stacked MLPs equal autograd's?"""

import pytest
import torch

from kcpr_safety.networks import Stack, parameter_count, split

SIZES = [3, 8, 7, 2]


def plain_forward(flat: torch.Tensor, x: torch.Tensor, *, layer_norm: bool) -> torch.Tensor:
    """The same network, one member and one row at a time, by torch's own functions."""
    layers = split(flat, 2, SIZES)
    rows = []
    for member in range(2):
        hidden = x[member]
        for index, (weight, bias) in enumerate(layers):
            hidden = torch.nn.functional.linear(hidden, weight[member].T, bias[member, 0])
            if index < len(layers) - 1:
                if layer_norm:
                    hidden = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
                hidden = torch.relu(hidden)
        rows.append(hidden)
    return torch.stack(rows)


def double_stack(*, layer_norm: bool) -> Stack:
    flat = torch.empty(parameter_count(2, SIZES), dtype=torch.float64)
    stack = Stack(2, SIZES, layer_norm=layer_norm, flat=flat)
    return stack.initialise(torch.Generator().manual_seed(0))


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_outputs_and_gradients_equal_the_plain_network(layer_norm: bool) -> None:
    stack = double_stack(layer_norm=layer_norm)
    flat, x = stack.flat.clone().requires_grad_(), draw(2, 5, 3).requires_grad_()
    weights = draw(2, 5, 2, seed=2)
    expected = plain_forward(flat, x, layer_norm=layer_norm)
    by_flat, by_x = torch.autograd.grad((expected * weights).sum(), [flat, x])
    out, trace = stack.forward(x.detach())
    torch.testing.assert_close(out, expected.detach())
    into = torch.full_like(stack.flat, torch.nan)
    stack.parameter_gradient(trace, weights, into=into)
    torch.testing.assert_close(into, by_flat)
    torch.testing.assert_close(stack.input_gradient(trace, weights, slice(None)), by_x)
    torch.testing.assert_close(stack.input_gradient(trace, weights, slice(1, 3)), by_x[..., 1:3])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_trace_of_some_rows_gives_their_gradient(layer_norm: bool) -> None:
    stack = double_stack(layer_norm=layer_norm)
    x, weights = draw(2, 5, 3), draw(2, 5, 2, seed=2)
    few, all_rows = torch.empty_like(stack.flat), torch.empty_like(stack.flat)
    stack.parameter_gradient(stack.forward(x[:, :3])[1], weights[:, :3], into=few)
    trace = stack.forward(x)[1].rows(3)
    stack.parameter_gradient(trace, weights[:, :3], into=all_rows)
    torch.testing.assert_close(few, all_rows)


def test_the_first_members_alone() -> None:
    stack = double_stack(layer_norm=False)
    x, weights = draw(2, 5, 3), draw(2, 5, 2, seed=2)
    out, trace = stack.forward(x[:1], members=1)
    everyone, full = stack.forward(x)
    torch.testing.assert_close(out, everyone[:1])
    torch.testing.assert_close(
        stack.input_gradient(trace, weights[:1], slice(None)),
        stack.input_gradient(full, weights, slice(None))[:1],
    )


def test_a_twin_does_not_follow_its_original() -> None:
    stack = double_stack(layer_norm=False)
    twin = stack.twin()
    stack.flat.add_(1.0)
    assert not torch.equal(stack.flat, twin.flat)


def test_layers_are_views_of_the_buffer() -> None:
    stack = double_stack(layer_norm=False)
    stack.layers()[1][0].zero_()
    assert (stack.flat == 0).sum() == 2 * 8 * 7


def test_a_buffer_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        Stack(2, SIZES, flat=torch.zeros(parameter_count(2, SIZES) - 1))
