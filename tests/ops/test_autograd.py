"""Expand and reduce against the dense matrix P, their precision, and their derivatives."""

from __future__ import annotations

import math

import pytest
import torch

from gpart import Partition
from gpart.ops.autograd import expand, reduce, scale
from gpart.ops.block import Block
from gpart.ops.reference import delta_block


def dense(size, d, seed=0, isometric=True):
    """P itself, D x d, in float64."""
    partition = Partition(size, d, seed)
    counts = partition.groups().bincount(minlength=d).double()
    matrix = torch.zeros(size, d, dtype=torch.float64)
    matrix[torch.arange(size), partition.groups().long()] = 1
    return matrix / counts.sqrt() if isometric else matrix


def whole(shape, d, seed=0, **dropout):
    """The one part that covers a weight of this shape."""
    groups = Partition(math.prod(shape), d, seed).groups()
    return (Block(groups, 0, 0, shape[0], **dropout),)


SHAPES = [((12,), 5), ((5, 7), 35), ((6, 4), 1), ((4, 3, 2), 7), ((2, 3, 4, 5), 9)]


@pytest.mark.parametrize(("shape", "d"), SHAPES)
@pytest.mark.parametrize("isometric", [True, False])
def test_expand_is_w0_plus_p_theta(shape, d, isometric):
    size = math.prod(shape)
    theta, weight = torch.randn(d, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    expected = weight + (dense(size, d, isometric=isometric) @ theta).view(shape)
    torch.testing.assert_close(expand(scale(theta, size, isometric), weight, whole(shape, d)), expected)


@pytest.mark.parametrize(("shape", "d"), SHAPES)
@pytest.mark.parametrize("isometric", [True, False])
def test_the_gradient_is_p_transposed_times_the_dense_gradient(shape, d, isometric):
    size = math.prod(shape)
    theta = torch.randn(d, dtype=torch.float64, requires_grad=True)
    weight, factor = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    (expand(scale(theta, size, isometric), weight, whole(shape, d)) ** 2 * factor).sum().backward()
    full = weight + (dense(size, d, isometric=isometric) @ theta.detach()).view(shape)
    expected = dense(size, d, isometric=isometric).T @ (2 * full * factor).flatten()
    torch.testing.assert_close(theta.grad, expected)


@pytest.mark.parametrize(("size", "d"), [(7, 1), (7, 3), (7, 7), (1000, 7), (1000, 500), (1000, 1000)])
def test_p_is_an_isometry(size, d):
    """PᵀP = I, with P read off expand column by column."""
    parts, zero = whole((size,), d), torch.zeros(size)
    columns = [expand(scale(unit, size), zero, parts).double() for unit in torch.eye(d)]
    gram = torch.stack(columns) @ torch.stack(columns).T
    torch.testing.assert_close(gram, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "d"), [(10, 3), (9, 3), (10, 10), (10, 1), (11, 4)])
def test_scale_divides_by_the_roots_of_the_group_sizes(size, d):
    theta = torch.randn(d)
    expected = theta.double() / Partition(size, d).sizes().double().sqrt()
    torch.testing.assert_close(scale(theta, size).double(), expected, rtol=2e-7, atol=0)
    assert scale(theta, size, isometric=False).equal(theta)


def test_blocks_leave_the_rest_of_the_weight_alone(same_bits):
    """Rows 1-2 and 4 of six, and columns 0 and 2 of four: only they change, each by its own groups."""
    scaled, weight = torch.tensor([1.0, 10.0, 100.0]), torch.randn(6, 4)
    groups = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 1, 0], dtype=torch.int32)
    rows = (Block(groups[:8], 0, 1, 3), Block(groups[8:], 0, 4, 5))
    expected = weight.clone()
    expected[1:3] += scaled[groups[:8].long()].view(2, 4)
    expected[4:5] += scaled[groups[8:].long()].view(1, 4)
    assert same_bits(expand(scaled, weight, rows), expected)
    columns = (Block(groups[:6], 1, 0, 1), Block(groups[6:], 1, 2, 3))
    expected = weight.clone()
    expected[:, 0:1] += scaled[groups[:6].long()].view(6, 1)
    expected[:, 2:3] += scaled[groups[6:].long()].view(6, 1)
    assert same_bits(expand(scaled, weight, columns), expected)
    grad = torch.arange(24.0).view(6, 4)
    sums = torch.zeros(3).index_add_(0, groups, torch.cat([grad[:, 0], grad[:, 2]]))
    assert reduce(grad, columns, 3, torch.float32).equal(sums)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_taken_in_float32_and_rounded_once(dtype, same_bits):
    theta, weight = torch.randn(50) * 0.1, torch.randn(40, 50).to(dtype)
    parts, scaled = whole((40, 50), 50), scale(theta, 2000)
    once = (weight.float() + delta_block(scaled, parts[0], weight.shape)).to(dtype)
    twice = weight + delta_block(scaled, parts[0], weight.shape).to(dtype)
    assert not once.equal(twice), "the example does not tell the two apart"
    assert same_bits(expand(scaled, weight, parts), once)
    halves = (Block(parts[0].indices[:1000], 0, 0, 20), Block(parts[0].indices[1000:], 0, 20, 40))
    assert same_bits(expand(scaled, weight, halves), once)


def test_a_float64_weight_is_summed_in_float64(same_bits):
    scaled, weight = torch.randn(3), torch.randn(6, dtype=torch.float64)
    groups = Partition(6, 3).groups()
    assert same_bits(expand(scaled, weight, whole((6,), 3)), weight + scaled.double()[groups.long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reduce_sums_more_precisely_than_float32(dtype):
    """A million terms in each of three groups: sequential float32 sums are off by 1e-5 here."""
    grad = torch.rand(3_000_000).to(dtype)
    groups = Partition(3_000_000, 3).groups()
    exact = groups.bincount(grad.double(), minlength=3)
    found = reduce(grad, (Block(groups, 0, 0, 3_000_000),), 3, torch.float32)
    assert found.dtype == torch.float32
    assert ((found.double() - exact) / exact).abs().max() < 1e-7


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last", "expanded"])
def test_positions_are_row_major_whatever_the_memory_layout(layout, same_bits):
    made = {
        "transposed": torch.randn(6, 4).t(),
        "strided": torch.randn(4, 12)[:, ::2],
        "channels_last": torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(4, 1).expand(4, 6),
    }[layout]
    d, scaled = 5, torch.randn(5)
    parts = whole(tuple(made.shape), d)
    blocks = (
        Block(parts[0].indices[: made[:2].numel()], 0, 0, 2),
        Block(parts[0].indices[made[:2].numel() :], 0, 2, 4),
    )
    for cut in (parts, blocks):
        assert same_bits(expand(scaled, made, cut), expand(scaled, made.contiguous(), cut))
        assert same_bits(reduce(made, cut, d, torch.float32), reduce(made.contiguous(), cut, d, torch.float32))


def test_the_weight_itself_is_never_written(same_bits):
    weight = torch.randn(4, 6)
    first = weight.clone()
    for parts in (whole((4, 6), 3), (Block(Partition(12, 3).groups(), 0, 1, 3),)):
        result = expand(torch.ones(3), weight, parts)
        assert result.data_ptr() != weight.data_ptr()
        assert same_bits(weight, first)


def test_dropped_entries_are_zero_and_kept_ones_boosted():
    keep = torch.tensor([True, False, True, True, False, True])
    groups = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)
    parts = (Block(groups, 0, 0, 6, keep, boost=4.0),)
    theta = torch.tensor([1.0, 2.0, 3.0])
    assert expand(theta, torch.zeros(6), parts).tolist() == [4, 0, 8, 8, 0, 12]
    assert reduce(torch.arange(1.0, 7.0), parts, 3, torch.float32).tolist() == [4, 28, 24]


def test_a_long_dropped_block_is_reduced_in_chunks_that_fit_each_other():
    """The reduction takes 2^18 numbers at a time; groups, mask and gradient must stay aligned across the border."""
    size = 2**18 + 1000
    groups, keep, grad = Partition(size, 11).groups(), torch.rand(size) > 0.3, torch.randn(size)
    expected = torch.zeros(11, dtype=torch.float64).index_add_(0, groups, grad.double() * keep * 1.5)
    found = reduce(grad, (Block(groups, 0, 0, size, keep, boost=1.5),), 11, torch.float64)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", ["whole", "blocks", "columns", "dropout"])
def test_first_and_second_derivatives_are_those_of_the_formula(case):
    groups = Partition(12, 4, 1).groups()
    parts = {
        "whole": (Block(groups, 0, 0, 3),),
        "blocks": (Block(groups[:4], 0, 0, 1), Block(groups[4:8], 0, 2, 3)),
        "columns": (Block(groups[:6], 1, 1, 3),),
        "dropout": (Block(groups, 0, 0, 3, torch.arange(12) % 3 > 0, boost=1.5),),
    }[case]
    theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def weights(theta, weight):
        return expand(scale(theta, 12), weight, parts) ** 3

    assert torch.autograd.gradcheck(weights, (theta, weight))
    assert torch.autograd.gradgradcheck(weights, (theta, weight))
    grad = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: reduce(g, parts, 4, torch.float64), (grad,))


def test_the_gradient_has_thetas_dtype_and_the_weights_passes_through():
    theta, weight = torch.zeros(3, requires_grad=True), torch.zeros(6, dtype=torch.bfloat16, requires_grad=True)
    factor = torch.randn(6).bfloat16()
    (expand(theta, weight, whole((6,), 3)) * factor).sum().backward()
    assert theta.grad.dtype == torch.float32
    assert weight.grad.equal(factor)
