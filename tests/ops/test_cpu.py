"""The passes in C: the bits of torch's own operations, wherever group numbers come from, and none of it where it errs."""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpart import GPartConfig, Partition, attach
from gpart.ops import cpu, dispatch
from gpart.ops.autograd import expand, reduce
from gpart.ops.block import Block, ComputedIndices, Entries
from gpart.ops.dispatch import expand_into
from gpart.ops.dropout import Mask
from gpart.ops.reference import expand_stretch, reduce_stretch
from gpart.ops.selfcheck import cpu_difference
from gpart.ops.sums import GroupSums

CPU = torch.device("cpu")
GCC = shutil.which("gcc")
HERE = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "aarch64") and GCC is not None
SIZE = (1 << 20) + 70_003  # more than one stretch, the last one of a length that no number of lanes divides

needs_compiler = pytest.mark.skipif(not HERE, reason="needs gcc, on Linux")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Whatever a test sets, the next one has as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def afresh() -> Iterator[None]:
    """Nothing is compiled yet, nor afterwards."""
    dispatch.cpu_library.cache_clear()
    yield
    dispatch.cpu_library.cache_clear()


def off(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch, "LEAST", 1 << 62)


def expanded(target: Tensor, scaled: Tensor, source: Tensor, block: Block, stretch: slice) -> bool:
    """One stretch in C, if it may."""
    if target.numel() < dispatch.LEAST or not cpu.takes_expand(target, scaled, source, block):
        return False
    library = dispatch.cpu_library()[0]
    assert library is not None
    cpu.expand_stretch(library, target, scaled, source, block, stretch)
    return True


def reduced(sums: Tensor, values: Tensor, block: Block, stretch: slice) -> bool:
    """The same of a gradient."""
    if values.numel() < dispatch.LEAST or not cpu.takes_reduce(sums, values, block):
        return False
    library = dispatch.cpu_library()[0]
    assert library is not None
    cpu.reduce_stretch(library, sums, values, block, stretch)
    return True


def indexed(out: Tensor, partition: Partition, start: int) -> bool:
    """The same of group indices."""
    if out.numel() < dispatch.LEAST or not cpu.takes_indices(out):
        return False
    library = dispatch.cpu_library()[0]
    assert library is not None
    cpu.group_indices(library, out, partition, start)
    return True


def same_bits(one: Tensor, other: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    both_nan = one.isnan() & other.isnan()  # whose payload is nobody's promise
    return bool(((one.view(bits) == other.view(bits)) | both_nan).all())


def entries(source: str, partition: Partition, start: int, count: int) -> Entries:
    if source == "computed":
        return ComputedIndices(partition, start, count, CPU)
    width = torch.int16 if source == "two bytes" else torch.int32
    padded = torch.empty(count + 1, dtype=width)  # at an odd address
    padded[1:] = partition.groups(start, start + count, dtype=width)
    return padded[1:]


def hostile(count: int, dtype: torch.dtype) -> Tensor:
    """Numbers of all sizes, and each that is special, many times."""
    generator = torch.Generator().manual_seed(1)
    info = torch.finfo(dtype)
    values = torch.randn(count, generator=generator) * torch.logspace(-30, 30, count)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, info.min, info.tiny, -info.tiny / 4]
    place = torch.randint(count, (9, 50), generator=generator)
    for row, value in zip(place, special, strict=True):
        values[row] = value
    return values.to(dtype)


@needs_compiler
def test_it_is_used_where_there_is_a_compiler(afresh: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.cpu_library()[0] is not None
    weight, part = torch.ones(1 << 16), Block(Partition(1 << 16, 7).groups(), 0, 0, 1 << 16)
    whole = slice(0, 1 << 16)
    assert expanded(torch.empty_like(weight), torch.ones(7), weight, part, whole)
    assert reduced(torch.zeros(1, 7), weight, part, whole)
    assert indexed(torch.empty(1 << 16, dtype=torch.int16), Partition(1 << 16, 7), 0)


@needs_compiler
@pytest.mark.parametrize("mask", ["none", "kept", "drawn again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", ["two bytes", "four bytes", "computed"])
def test_expand_has_the_bits_of_torch(
    monkeypatch: pytest.MonkeyPatch, source: str, dtype: torch.dtype, mask: str
) -> None:
    partition = Partition(3 * SIZE, 4608, 5)
    keep = {"none": None, "kept": Mask(0.1, 3, SIZE, CPU)[:], "drawn again": Mask(0.1, 3, SIZE, CPU)}[mask]
    part = Block(entries(source, partition, SIZE, SIZE), 0, 0, SIZE, keep, 1.1)
    base = hostile(SIZE + 1, dtype)[1:]
    scaled = hostile(4608, torch.float32).clamp(-1e4, 1e4)
    got = expand_into(torch.empty(SIZE + 1, dtype=dtype)[1:], scaled, base, (part,))
    with monkeypatch.context() as patch:
        off(patch)
        wanted = expand_into(torch.empty(SIZE, dtype=dtype), scaled, base, (part,))
    assert same_bits(got, wanted)


@needs_compiler
@pytest.mark.parametrize("mask", ["none", "kept", "drawn again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("source", "d"),
    # Sums in float64 alone, by way of float32, and in float32 alone; four lanes, and one.
    [("two bytes", 97), ("two bytes", 23_040), ("four bytes", 300_000), ("computed", 4608), ("computed", 300_000)],
)
def test_reduce_has_the_bits_of_torch(
    monkeypatch: pytest.MonkeyPatch, source: str, d: int, dtype: torch.dtype, mask: str
) -> None:
    partition = Partition(3 * SIZE, d, 5)
    keep = {"none": None, "kept": Mask(0.1, 3, SIZE, CPU)[:], "drawn again": Mask(0.1, 3, SIZE, CPU)}[mask]
    part = Block(entries(source, partition, SIZE, SIZE), 0, 0, SIZE, keep, 1.1)
    grad = torch.randn(SIZE + 1, generator=torch.Generator().manual_seed(0)).to(dtype)[1:]
    got = GroupSums(d, CPU)
    got.add(grad, (part,))
    with monkeypatch.context() as patch:
        off(patch)
        wanted = GroupSums(d, CPU)
        wanted.add(grad, (part,))
    assert same_bits(got.total(torch.float64), wanted.total(torch.float64))


@needs_compiler
@pytest.mark.parametrize(
    ("size", "seed"),
    # Both sides of every change of arithmetic, see test_partition.py.
    [
        *[(1 << 17, 0), ((1 << 17) + 1, 1), (14_155_776, 0), (2**30, 0), (2**31 - 1, 2**64 - 1), (2**31, 0)],
        *[(2**31 + 1, 2**64 - 1), (2**32 + 1, 1), (2**40 + 3, 1), (2**62, 2**64 - 1)],
    ],
)
@pytest.mark.parametrize("d", [1, 2, 4608, 32_768, 32_769, 100_000])
def test_group_numbers_are_those_of_the_scheme(monkeypatch: pytest.MonkeyPatch, size: int, seed: int, d: int) -> None:
    partition = Partition(size, d, seed)
    start = size - 70_001
    got = dispatch.group_indices(partition, start, partition.size, CPU, partition.dtype)
    with monkeypatch.context() as patch:
        off(patch)
        assert torch.equal(got, partition.groups(start, dtype=partition.dtype))


@needs_compiler
@pytest.mark.parametrize("d", [2**31 - 1, 2**31 - 2, 2**30 + 1, 3])
def test_the_remainder_is_right_up_to_the_largest_d(monkeypatch: pytest.MonkeyPatch, d: int) -> None:
    partition = Partition(2**31 - 1, d)
    got = dispatch.group_indices(partition, 0, 1 << 17, CPU)
    with monkeypatch.context() as patch:
        off(patch)
        assert torch.equal(got, partition.groups(0, 1 << 17))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_numbers_need_no_temporary(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Neither a stretch's group numbers nor its values in another dtype: that is what keeps memory near the floor's."""
    partition = Partition(SIZE, 4608)
    part, values = Block(ComputedIndices(partition, 0, SIZE, CPU), 0, 0, SIZE), torch.ones(SIZE, dtype=dtype)
    wanted = partition.sizes()

    def made(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("a temporary")

    for where in ("gpart.ops.reference.scratch", "gpart.partition.Partition.groups"):
        monkeypatch.setattr(where, made)
    assert expand_into(torch.empty(SIZE, dtype=dtype), torch.ones(4608), values, (part,)).eq(2).all()
    assert torch.equal(reduce(values, (part,), 4608, torch.float64).long(), wanted)


@needs_compiler
def test_the_number_of_threads_changes_no_bit() -> None:
    partition = Partition(SIZE, 4608)
    part = Block(ComputedIndices(partition, 0, SIZE, CPU), 0, 0, SIZE)
    values = torch.randn(SIZE)
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(
            (
                expand_into(torch.empty(SIZE), values[:4608], values, (part,)),
                reduce(values, (part,), 4608, torch.float64),
                dispatch.group_indices(partition, 0, SIZE, CPU),
            )
        )
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


@needs_compiler
def test_several_threads_of_python_do_not_disturb_each_other() -> None:
    partition = Partition(SIZE, 97)
    part, scaled = Block(partition.groups(), 0, 0, SIZE), torch.randn(97)
    bases = [torch.full((SIZE,), float(number)) for number in range(4)]
    wanted = [expand_into(torch.empty(SIZE), scaled, base, (part,)) for base in bases]
    sums = [reduce(base, (part,), 97, torch.float64) for base in bases]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            out = expand_into(torch.empty(SIZE), scaled, bases[number], (part,))
            total = reduce(bases[number], (part,), 97, torch.float64)
            if not (torch.equal(out, wanted[number]) and torch.equal(total, sums[number])):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def _forked(answer: multiprocessing.Queue[list[int]]) -> None:
    torch.set_num_threads(1)  # as torch's loader workers do: OpenMP's threads do not live on in a forked process
    answer.put(dispatch.group_indices(Partition(1 << 17, 97), 0, 1 << 17, CPU)[-3:].tolist())


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # that is what is tested
def test_a_forked_process_goes_on_with_it() -> None:
    wanted = Partition(1 << 17, 97).groups()[-3:].tolist()
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.Queue[list[int]] = context.Queue()
    child = context.Process(target=_forked, args=(answer,))
    child.start()
    assert answer.get(timeout=60) == wanted
    child.join(60)
    assert child.exitcode == 0


class Wide(nn.Module):
    """Two layers of 256 x 300 and 300 x 256 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(300, 256), nn.Linear(256, 300)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@needs_compiler
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("indices", "weights"), [("stored", "kept"), ("computed", "recomputed")])
def test_training_comes_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, indices: str, weights: str, dtype: torch.dtype, dropout: float
) -> None:
    config = GPartConfig(d=501, target_modules=["first", "second"], dropout=dropout, seed=3)
    called: list[str] = []
    for name in ("expand_stretch", "reduce_stretch"):
        real = getattr(cpu, name)
        monkeypatch.setattr(cpu, name, lambda *args, name=name, real=real: (called.append(name), real(*args)))

    def train() -> list[Tensor]:
        torch.manual_seed(0)
        model = Wide().to(dtype)
        adapter = attach(model, config, indices=indices, weights=weights)
        optimizer = torch.optim.AdamW([adapter.theta], lr=1e-2)
        for _ in range(3):
            model(torch.randn(4, 300).to(dtype)).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        adapter.merge()
        with torch.no_grad():
            return [adapter.theta.detach(), model.first.weight, model.second.weight]

    got = train()
    assert set(called) == {"expand_stretch", "reduce_stretch"}
    assert got[0].abs().max() > 0
    called.clear()
    with monkeypatch.context() as patch:
        off(patch)
        wanted = train()
    assert not called
    assert all(map(same_bits, got, wanted))


@needs_compiler
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("indices", ["stored", "computed"])
def test_function_transforms_have_no_memory_to_give(indices: str, dropout: float) -> None:
    torch.manual_seed(0)
    model = Wide()
    config = GPartConfig(d=501, target_modules=["first"], dropout=dropout)
    adapter = attach(model, config, weights="forward", indices=indices)
    x = torch.randn(4, 300)

    def loss(values: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(1)  # the mask's
        return torch.func.functional_call(model, values, (x,)).square().mean()

    found = torch.func.grad(loss)({adapter.theta_name: adapter.theta})[adapter.theta_name]
    loss({}).backward()
    torch.testing.assert_close(found, adapter.theta.grad)


@needs_compiler
def test_autograd_sees_what_is_written() -> None:
    partition = Partition(1 << 16, 7)
    part, x = Block(partition.groups(), 0, 0, 1 << 16), torch.ones(1 << 16, requires_grad=True)
    held = torch.ones(1 << 16)
    product = (x * held).sum()
    expand_into(held, torch.ones(7), torch.zeros(1 << 16), (part,))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        assert expand(torch.ones(7), torch.zeros(1 << 16), (part,)).eq(1).all()


WAYS = ["a strided W0", "double", "half", "a subclass", "little", "int64 numbers", "strided numbers", "a strided mask"]


@needs_compiler
@pytest.mark.parametrize("way", WAYS)
def test_what_it_does_not_do_is_left_to_torch(way: str) -> None:
    count = 100 if way == "little" else 1 << 17
    weight, scaled, keep = torch.zeros(count), torch.arange(7.0), None
    groups: Tensor = Partition(count, 7).groups()
    if way == "a strided W0":
        weight = torch.zeros(2 * count)[::2]
    elif way == "double":
        weight, scaled = weight.double(), scaled.double()
    elif way == "half":
        weight = weight.half()
    elif way == "a subclass":
        weight = weight.as_subclass(type("Other", (Tensor,), {}))
    elif way == "int64 numbers":
        groups = groups.long()
    elif way == "strided numbers":
        groups = groups.repeat_interleave(2)[::2]
    elif way == "a strided mask":
        keep = torch.tensor([True, False]).repeat(count)[::2]
    part, out, sums = Block(groups, 0, 0, count, keep), torch.ones(count, dtype=weight.dtype), torch.zeros(4, 7)
    assert not expanded(out, scaled, weight, part, slice(0, count))
    assert not reduced(sums, weight, part, slice(0, count))
    assert out.eq(1).all()
    assert not sums.any()
    assert expand_into(out, scaled, weight, (part,)).double().equal(groups.double())


@needs_compiler
@pytest.mark.parametrize("way", ["theta of half width", "a result of another dtype"])
def test_a_mixture_of_dtypes_is_left_to_torch(way: str) -> None:
    count = 1 << 17
    part, out = Block(Partition(count, 7).groups(), 0, 0, count), torch.ones(count)
    scaled, weight = torch.arange(7.0), torch.zeros(count)
    if way == "theta of half width":
        scaled = scaled.bfloat16()
    else:
        weight = weight.bfloat16()
    assert not expanded(out, scaled, weight, part, slice(0, count))
    assert out.eq(1).all()
    assert not reduced(torch.zeros(4, 7, dtype=torch.bfloat16), weight, part, slice(0, count))
    assert not indexed(torch.empty(count, dtype=torch.int64), Partition(count, 7), 0)


FAULTS = {
    "an addition": ("to[i] = scaled[number[i]] + from[i];", "to[i] = scaled[number[i]] - from[i];"),
    "the mask": ("update[i] * (float)keep[first + i] * (float)boost;", "update[i] * (float)keep[first + i];"),
    "the mask of sums": ("value[i] * (TYPE)keep[first + i] * (TYPE)boost;", "value[i] * (TYPE)boost;"),
    "rounding to even": ("0x7FFF + ((bits >> 16) & 1)", "0x8000"),
    "the last block": ("for (; first < last; first += BLOCK)", "for (; first + BLOCK < last; first += BLOCK)"),
    "what no number of rows divides": ("rest < (row ? 1 : 2)", "rest < 1"),
    "a row's place": ("(float *)sums + row * length", "(float *)sums"),
    "the remainder": ("(int32_t)((double)x * inverse)", "(int32_t)((double)x * inverse * 0.999)"),
    "a second walk": ("left += x[j] >= size;", ""),
    "a shift": ("(r % 2 ? third : half)", "(half)"),
    "the wide remainder": ("x[i] % d", "x[i] % (d + 1)"),
    "the block's position": (
        "(uint64_t)(start + first), count);\n    return scratch;",
        "(uint64_t)first, count);\n    return scratch;",
    ),
    "numbers of two bytes": (
        "((uint16_t *)out)[first + i] = (uint16_t)number[i];",
        "((uint16_t *)out)[first + i] = 0;",
    ),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds_every_fault(tmp_path: Path, fault: str) -> None:
    right, wrong = FAULTS[fault]
    code = cpu.SOURCE.read_text()
    assert code.count(right) >= 1
    source = tmp_path / "cpu.c"
    source.write_text(code.replace(right, wrong))
    assert GCC is not None
    assert cpu_difference(cpu.build([GCC], source))


@needs_compiler
def test_the_check_finds_fused_multiply_adds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What -ffp-contract=off is for, written out."""
    source = tmp_path / "cpu.c"
    buffered = "to[i] = update[i] + from[i];"
    code = cpu.SOURCE.read_text().replace("#include <string.h>", "#include <string.h>\n#include <math.h>")
    assert buffered in code
    code = code.replace(
        "update[i] = update[i] * (float)keep[first + i] * (float)boost;", "update[i] *= (float)keep[first + i];"
    )
    source.write_text(
        code.replace(buffered, "to[i] = keep ? fmaf(update[i], (float)boost, from[i]) : update[i] + from[i];")
    )
    assert GCC is not None
    assert "and a mask has other numbers" in cpu_difference(cpu.build([GCC], source))


def use_compiler(folder: Path, patch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    command = folder / "gcc"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    patch.setenv("PATH", str(folder))


@needs_compiler
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'stdint.h: No such file' >&2; exit 1", "stdint.h: No such file"),
        (r"printf 'in Latin-1: \351t\351' >&2; exit 1", "in Latin-1: \ufffdt\ufffd"),
        ("exit 0", "cannot open shared object file"),
        (f"{GCC} -shared -x c /dev/null -o ${{8:-/dev/null}}", "OSError|CalledProcessError|AttributeError"),
    ],
)
def test_a_compiler_that_fails_is_said_once_and_torch_does_it(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    partition = Partition(1 << 17, 97)
    wanted = partition.groups()
    dispatch.cpu_library.cache_clear()
    use_compiler(tmp_path / "bin", monkeypatch, script)
    with pytest.warns(UserWarning, match=said) as caught:
        found = [dispatch.group_indices(partition, 0, 1 << 17, CPU) for _ in range(2)]
    assert all(torch.equal(groups, wanted) for groups in found)
    assert len(caught) == 1
    assert "cpu.c is not used" in str(caught[0].message)


@needs_compiler
def test_a_library_that_errs_is_said_once_and_not_used(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right, wrong = FAULTS["an addition"]
    source = tmp_path / "cpu.c"
    source.write_text(cpu.SOURCE.read_text().replace(right, wrong))
    monkeypatch.setattr(cpu, "SOURCE", source)
    weight, part = torch.ones(1 << 16), Block(Partition(100, 7).groups(0, 100).repeat(656)[: 1 << 16], 0, 0, 1 << 16)
    with pytest.warns(UserWarning, match="has other numbers") as caught:
        found = [expand_into(torch.empty(1 << 16), torch.ones(7), weight, (part,)) for _ in range(2)]
    assert all(sums.eq(2).all() for sums in found)
    assert len(caught) == 1


@pytest.mark.parametrize("lacking", ["gcc", "Linux", "a known processor"])
def test_elsewhere_torch_does_it_without_a_word(
    afresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str
) -> None:
    if lacking == "gcc":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif lacking == "Linux":
        monkeypatch.setattr(sys, "platform", "darwin")
    else:
        monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dispatch.group_indices(Partition(1 << 17, 97), 0, 1 << 17, CPU).max() == 96
    assert dispatch.cpu_library()[0] is None


@needs_compiler
def test_there_is_one_openmp_and_no_file_stays(tmp_path: Path) -> None:
    """Two runtimes would each have their threads spin on the same cores."""
    code = (
        "import torch; from gpart.ops import dispatch; assert dispatch.cpu_library()[0];"
        "print(*sorted({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.split()) <= 1, done.stdout
    assert not list(tmp_path.iterdir())
    assert Path(tempfile.gettempdir()).exists()


def test_torch_alone_is_what_it_is_compared_with() -> None:
    """The reference of the check does not go through the library."""
    part, out, sums = Block(Partition(4, 2).groups(), 0, 0, 4), torch.empty(4), torch.zeros(1, 2)
    expand_stretch(out, torch.tensor([1.0, 2.0]), torch.zeros(4), part, slice(0, 4))
    reduce_stretch(sums, torch.ones(4), part, slice(0, 4))
    assert out.equal(part.indices[:].float() + 1)
    assert sums.tolist() == [[2.0, 2.0]]
