"""The Triton kernels against the reference: run by ``test_triton.py``, in a process of its own.

With ``TRITON_INTERPRET=1`` on the CPU, else on the first GPU.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

from gpart import GPartConfig, Partition, attach
from gpart.ops import dispatch, reference, selfcheck
from gpart.ops.autograd import reduce
from gpart.ops.block import Block, ComputedIndices
from gpart.ops.dispatch import expand_into
from gpart.ops.sums import GroupSums

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda:0")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def _start() -> None:
    torch.manual_seed(0)
    dispatch._triton_agrees.cache_clear()
    dispatch._triton_reduces.cache_clear()


@pytest.fixture
def unchecked(monkeypatch):
    """Takes the check as passed, where it would only take time."""
    for check in ("triton_expand_difference", "triton_reduce_difference"):
        monkeypatch.setattr(selfcheck, check, lambda *kind: "")


@pytest.fixture
def calls(monkeypatch):
    """The names of the kernels that were launched."""
    from gpart.ops import triton_kernels

    seen = []
    for name in ("expand_block", "reduce_block"):
        real = getattr(triton_kernels, name)
        monkeypatch.setattr(
            triton_kernels, name, lambda *args, real=real, name=name: (seen.append(name), real(*args))[1]
        )
    return seen


def computed(partition, start, count):
    return Block(ComputedIndices(partition, start, count, DEVICE), 0, 0, count)


def numbers(partition, start, count):
    """Group numbers as a kernel computes them: W0 is zero and scaled_j is j."""
    out = torch.full((count,), -1.0, dtype=torch.float64, device=DEVICE)
    scaled = torch.arange(partition.d, dtype=torch.float64, device=DEVICE)
    assert expanded(out, scaled, torch.zeros_like(out), computed(partition, start, count))
    return out.long().tolist()


def expanded(target, scaled, source, block):
    """One block by the kernel, if it may."""
    index = dispatch._triton_expands(target, scaled, source, block)
    if index is not None:
        dispatch._triton().expand_block(target, scaled, source, index)
    return index is not None


def same_bits(a, b):
    return torch.equal(a.view(BITS[a.dtype.itemsize]), b.view(BITS[b.dtype.itemsize]))


@pytest.mark.parametrize(
    ("size", "d", "seed", "first"),
    [
        (10, 3, 0, "1 2 2 1 1 0 0 2 0 0"),
        (10, 10, 7, "4 7 5 8 3 2 6 0 1 9"),
        (1000, 7, 42, "3 2 5 0 3 6 6 5 0 1"),
        (1_769_472, 4608, 0, "914 248 3801 2776 437 670 2822 320 1503 1646"),
        (14_155_776, 23_040, 0, "18013 6301 12285 866 7395 262 20338 8384 1745 8226"),
    ],
)
def test_kernels_compute_the_golden_group_numbers(unchecked, size, d, seed, first):
    assert " ".join(map(str, numbers(Partition(size, d, seed), 0, 10))) == first


@pytest.mark.parametrize(
    ("partition", "position", "group"),
    [
        (Partition(1_342_177_280, 524_288), 10**9, 42_267),
        (Partition(1_342_177_280, 524_288), 1_342_177_279, 12_889),
        (Partition(2**40 + 3, 10**6, 1), 2**33, 522_403),
        (Partition(2**40 + 3, 10**6, 1), 2**40 + 2, 842_827),
    ],
)
def test_kernels_compute_the_golden_group_numbers_of_far_positions(unchecked, partition, position, group):
    assert numbers(partition, position, 1) == [group]


@pytest.mark.parametrize(
    ("size", "seed"),
    # Both sides of every change of arithmetic, see test_partition.py.
    [
        *[(1, 0), (128, 0), (129, 1), (65_537, 1), (2**30, 0), (2**31 - 1, 2**64 - 1), (2**31, 0)],
        *[(2**31 + 1, 2**64 - 1), (2**32 + 1, 1), (2**62, 2**64 - 1)],
    ],
)
def test_kernels_compute_the_group_numbers_of_the_last_positions(unchecked, size, seed):
    partition = Partition(size, min(size, 4608), seed)
    start = max(0, size - 300)
    assert numbers(partition, start, size - start) == partition.groups(start).tolist()


@pytest.mark.parametrize(
    ("source_kind", "scaled_dtype"),
    [
        ("stored", torch.float32),
        ("stored in 16 bits", torch.float32),
        ("32 bits", torch.float64),
        ("64 bits", torch.float32),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_expand_has_the_bits_of_the_reference(unchecked, dtype, scaled_dtype, source_kind):
    """More than one program, the last one not full, at an address that is not a multiple of sixteen bytes."""
    partition, count = Partition(2**31 + 7 if "64" in source_kind else 70_001, 4608, 5), 1500
    part = computed(partition, partition.size - count, count)
    if "stored" in source_kind:
        numbers = part.indices[:]
        part = Block(numbers.short() if "16" in source_kind else numbers, 0, 0, count)
    # Sums of like size, so that most are rounded, among them some very small and some near the largest numbers.
    size = torch.logspace(-7, 4.8, count, dtype=torch.float64, device=DEVICE)
    source = torch.zeros(count + 1, dtype=dtype, device=DEVICE)[1:].copy_(torch.randn(count, device=DEVICE) * size)
    scaled = torch.randn(4608, dtype=torch.float64, device=DEVICE).mul_(0.1).to(scaled_dtype)
    wanted, got = torch.zeros_like(source), torch.zeros(count + 1, dtype=dtype, device=DEVICE)[1:]
    reference.expand_block(wanted, scaled, source, part)
    assert expanded(got, scaled, source, part)
    assert same_bits(wanted, got)


def test_half_way_sums_go_to_the_even_neighbour(unchecked):
    part = computed(Partition(600, 1), 0, 600)
    source = torch.arange(0x3F80, 0x3F80 + 600, dtype=torch.int16, device=DEVICE).view(torch.bfloat16)
    for half in (2.0**-8, -(2.0**-8)):
        scaled = torch.tensor([half], device=DEVICE)
        wanted, got = torch.zeros_like(source), torch.zeros_like(source)
        reference.expand_block(wanted, scaled, source, part)
        assert expanded(got, scaled, source, part)
        assert same_bits(wanted, got)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan], dtype=torch.bfloat16, device=DEVICE)
    got = torch.zeros_like(special)
    assert expanded(got, torch.ones(1, device=DEVICE), special, computed(Partition(600, 1), 0, 4))
    assert [str(value) for value in got.tolist()] == ["inf", "-inf", "nan", "nan"]


@pytest.mark.parametrize(
    ("size", "d", "stored"),
    [(1500, 1, True), (1500, 3, False), (1500, 1500, False), (2**31 + 7, 4608, False), (2**31 + 7, 4608, True)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_reduce_gives_the_sums_of_the_reference(unchecked, dtype, size, d, stored):
    part = computed(Partition(size, d, 1), size - 1500, 1500)
    if stored:
        part = Block(part.indices[:], 0, 0, 1500)
    grad = torch.randn(1500, dtype=torch.float64, device=DEVICE).to(dtype)
    wanted, found = GroupSums(d, DEVICE), GroupSums(d, DEVICE)
    wanted.add_block(grad, part)
    assert dispatch.reduce_blocks(found._sums(), grad, (part,))
    torch.testing.assert_close(found.total(torch.float64), wanted.total(torch.float64), rtol=1e-13, atol=1e-13)


def test_gradients_that_lie_in_memory_in_any_way_are_summed(unchecked, calls):
    part = Block(computed(Partition(60, 7), 0, 24).indices, 1, 1, 5)  # columns 1 to 4 of a 6 x 10 weight
    for grad in (torch.randn(10, 6, device=DEVICE).T, torch.ones((), device=DEVICE).expand(6, 10)):
        wanted = GroupSums(7, DEVICE)
        wanted.add_block(part.of(grad).reshape(-1), part)
        torch.testing.assert_close(reduce(grad, (part,), 7, torch.float64), wanted.total(torch.float64))
    assert calls == ["reduce_block"] * 2


def test_an_adapter_computes_the_same_with_and_without_kernels(monkeypatch, calls):
    """Two blocks of one weight, a bias, both sources of group numbers, through a layer and its backward pass."""
    config = GPartConfig(d=11, target_modules=["0"], slices={"0": [[0, 3], [5, 8]]}, bias="all", seed=3)
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for indices in ("stored", "computed"):
            for used in (True, False):
                with monkeypatch.context() as patch:
                    if not used:
                        patch.setattr(dispatch, "triton_available", lambda device: False)
                    torch.manual_seed(1)
                    model = nn.Sequential(nn.Linear(9, 8)).to(DEVICE)
                    adapter = attach(model, config, indices=indices, weights="forward")
                    with torch.no_grad():
                        adapter.theta.normal_()
                    calls.clear()
                    output = model(torch.randn(4, 9).to(DEVICE))
                    output.square().sum().backward()
                    assert set(calls) == ({"expand_block", "reduce_block"} if used else set())
                    results.append((output.detach(), adapter.theta.grad))
    for output, grad in results[1:]:
        assert same_bits(output, results[0][0])
        torch.testing.assert_close(grad, results[0][1], rtol=1e-6, atol=0)


def test_function_transforms_go_by_the_reference(unchecked, calls):
    """Their tensors have no memory to give a kernel."""
    model = nn.Sequential(nn.Linear(9, 8)).to(DEVICE)
    adapter = attach(model, GPartConfig(d=11, target_modules=["0"]), weights="forward")
    x = torch.randn(4, 9, device=DEVICE)

    def loss(values):
        return torch.func.functional_call(model, values, (x,)).square().sum()

    found = torch.func.grad(loss)({adapter.theta_name: adapter.theta})[adapter.theta_name]
    loss({}).backward()
    torch.testing.assert_close(found, adapter.theta.grad)


@pytest.mark.parametrize("kernel", ["expand_block", "reduce_block"])
@pytest.mark.parametrize("fault", ["one number", "an error"])
def test_a_kernel_that_errs_is_not_used_and_one_warning_says_so(monkeypatch, kernel, fault):
    from gpart.ops import triton_kernels

    real = getattr(triton_kernels, kernel)

    def wrong(target, *args):
        if fault == "an error":
            raise RuntimeError("no compiler")
        real(target, *args)
        if kernel == "expand_block":
            target.view(torch.int32)[-1] += 1
        else:
            target.view(-1)[-1] += 2**-10

    monkeypatch.setattr(triton_kernels, kernel, wrong)
    part = computed(Partition(100, 7), 0, 100)
    weight, scaled = torch.randn(100, device=DEVICE), torch.randn(7, device=DEVICE)
    wanted, out, sums = torch.zeros_like(weight), torch.zeros_like(weight), GroupSums(7, DEVICE)
    reference.expand_block(wanted, scaled, weight, part)
    sums.add_block(weight, part)
    message = "other numbers than the reference" if fault == "one number" else "RuntimeError: no compiler"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert same_bits(expand_into(out, scaled, weight, (part,)), wanted)
            torch.testing.assert_close(reduce(weight, (part,), 7, torch.float64), sums.total(torch.float64))
    (warned,) = caught
    assert f"computed in 32 bits on {DEVICE} is not used" in str(warned.message)
    assert message in str(warned.message)


def test_what_a_kernel_cannot_do_is_left_to_the_reference(unchecked, calls):
    part = computed(Partition(100, 7), 0, 100)
    kept = Block(part.indices, 0, 0, 100, keep=torch.ones(100, dtype=torch.bool, device=DEVICE))
    weight, scaled = torch.randn(100, device=DEVICE), torch.randn(7, device=DEVICE)
    assert not expanded(torch.zeros_like(weight), scaled, weight, kept)
    sums = torch.zeros(4, 7, dtype=torch.float64, device=DEVICE)
    assert not dispatch.reduce_blocks(sums, weight, (kept,))
    assert not dispatch.reduce_blocks(sums, weight, (part, kept))
    assert not sums.any()
    eight = weight.to(torch.float8_e4m3fn)
    assert not expanded(torch.zeros_like(eight), scaled, eight, part)
    assert not expanded(torch.zeros_like(weight), scaled.half(), weight, part)
    long = Block(part.indices[:].long(), 0, 0, 100)
    assert not expanded(torch.zeros_like(weight), scaled, weight, long)
    assert not calls
    nothing = torch.zeros(0, device=DEVICE)
    assert expanded(nothing, scaled, nothing, computed(Partition(100, 7), 0, 0))


def test_deterministic_algorithms_sum_by_the_reference(unchecked, calls):
    part = computed(Partition(100, 7), 0, 100)
    torch.use_deterministic_algorithms(mode=True)
    try:
        sums = torch.zeros(4, 7, dtype=torch.float64, device=DEVICE)
        assert not dispatch.reduce_blocks(sums, torch.ones(100, device=DEVICE), (part,))
        reduce(torch.ones(100, device=DEVICE), (part,), 7, torch.float32)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert not calls
