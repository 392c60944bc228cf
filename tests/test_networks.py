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
    stack = Stack.create(2, SIZES, torch.Generator().manual_seed(0), layer_norm=layer_norm)
    flat = stack.flat.detach().double().requires_grad_()
    return Stack(2, SIZES, layer_norm=layer_norm, flat=flat)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_outputs_and_gradients_equal_the_plain_network(layer_norm: bool) -> None:
    stack = double_stack(layer_norm=layer_norm)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    weights = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = plain_forward(stack.flat, x, layer_norm=layer_norm)
    torch.testing.assert_close(stack(x), expected)
    for ours, plain in zip(
        torch.autograd.grad((stack(x) * weights).sum(), [stack.flat, x]),
        torch.autograd.grad((expected * weights).sum(), [stack.flat, x]),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_gradcheck(layer_norm: bool) -> None:
    stack = double_stack(layer_norm=layer_norm)
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def outputs(flat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return Stack(2, SIZES, layer_norm=layer_norm, flat=flat)(x)

    assert torch.autograd.gradcheck(outputs, (stack.flat, x.requires_grad_()))


def test_frozen_uses_the_first_members_and_leaves_the_parameters_alone() -> None:
    stack = double_stack(layer_norm=False)
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    out = stack.frozen(x[:1], members=1)
    torch.testing.assert_close(out, stack(x)[:1])
    out.sum().backward()
    assert stack.flat.grad is None
    assert x.grad is not None and x.grad[0].abs().sum() > 0


def test_a_twin_does_not_follow_its_original() -> None:
    stack = double_stack(layer_norm=False)
    twin = stack.twin()
    with torch.no_grad():
        stack.flat.add_(1.0)
    assert not torch.equal(stack.flat, twin.flat)
    assert not twin.flat.requires_grad


def test_layers_are_views_of_the_buffer() -> None:
    stack = double_stack(layer_norm=False)
    stack.layers()[1][0].zero_()
    assert (stack.flat == 0).sum() == 2 * 8 * 7


def test_a_buffer_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not hold"):
        Stack(2, SIZES, flat=torch.zeros(parameter_count(2, SIZES) - 1))
