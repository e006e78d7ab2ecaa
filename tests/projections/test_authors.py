"""The groups of the paper's own code: every golden value of ``shared/authors.md``, which came out of running it."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from gpart.errors import GPartError
from gpart.projections import authors
from gpart.projections.authors import MaterializedGroups
from gpart.projections.hashing import authors_stateless
from gpart.projections.registry import make_projection

MADE = {"stateless": authors_stateless, "materialized": MaterializedGroups}
GOLDEN = """
stateless | 64 | 7 | 0 | 2 2 4 2 6 3 3 2 4 2 1 1 1 2 5 0 2 6 1 1 | c9d362e37d8149c1585754fd581483bfa4255ed993784f406ef71bf8d87bc946 | 5..14
materialized | 64 | 7 | 0 | 4 3 0 2 1 2 6 3 4 5 2 0 1 5 2 4 4 2 4 2 | 4f8ca06897c3197e4c161d1afddf18a86cd1023377c962b35f6c2fc0d17bb24c | 5..18
stateless | 64 | 7 | 42 | 5 1 0 2 3 5 1 0 3 6 0 0 5 3 1 6 1 1 6 2 | f13f08b02d42dca189cd48db4dd479bf64ded5f45a89096e5d290e4820abfeb8 | 5..14
materialized | 64 | 7 | 42 | 1 2 4 5 4 3 5 5 0 0 0 5 6 4 1 2 6 6 2 3 | 2c5d19fbb2366a6533ea82f172e1ec9f1846f65b267a4be50f42653018953096 | 6..16
stateless | 294912 | 4608 | 0 | 943 4289 2254 4077 202 2906 2048 471 2614 3172 4042 669 3843 4351 1598 1541 2567 2403 2098 2628 | a4603ffbbe7aaaf152a5891a3366718d515c6d1986fa980c21c3cadfd65e74e8 | 36..93
materialized | 294912 | 4608 | 0 | 1196 1071 3701 3264 835 1275 4291 3943 4105 2259 4373 3314 3876 1623 3142 1496 3672 396 1850 705 | ec6c1dd2e825deb7cd08354f327bd567e2fac59a3f64fe6f19aae1f2be5fe702 | 38..92
stateless | 294912 | 4608 | 42 | 2197 3976 1107 1750 519 4485 803 1368 4299 616 1610 886 2421 1308 2375 3121 1490 1596 2919 4145 | fb6b14d21c90cf5f04e854d5bbf53eed87a71141e4d77a5ed7d83e9d3d8a3774 | 36..93
materialized | 294912 | 4608 | 42 | 3174 4019 4444 2830 3690 3143 700 3092 4198 1145 2002 1750 3914 4554 3159 4468 3683 2407 2199 130 | f285609ab6100911d7eb891e3f37a9413d29db013533ea871c27dd0fc68d7743 | 37..95
stateless | 1572864 | 23040 | 0 | 19375 13505 11470 13293 9418 21338 15872 9687 7222 12388 17866 14493 3843 18175 1598 1541 7175 11619 20530 7236 | b2e9bf92a7a23345d2f3ffd7bb560ef8ccd4df45e1e8c68eed8071b67d251c7b | 36..105
materialized | 1572864 | 23040 | 0 | 5804 5679 22133 12480 5443 15099 13507 3943 22537 16083 8981 21746 3876 10839 12358 1496 17496 18828 15674 5313 | beedbe2f99a632bf924751a0e82df22f705222f455c6d05a036044397e38eabe | 38..104
stateless | 1572864 | 23040 | 42 | 11413 17800 14931 10966 14343 4485 14627 15192 4299 9832 20042 10102 16245 1308 6983 21553 19922 1596 12135 17969 | 07e451ef0808bc35b6d33aa7a7e61e8224cf1751b2656e6a2bef4c6e03630ef5 | 36..105
materialized | 1572864 | 23040 | 42 | 7782 8627 22876 16654 12906 21575 700 21524 22630 5753 11218 15574 13130 4554 21591 18292 22115 7015 6807 9346 | eb13a7d14a3d3ae61770182035927bcd0299cad66b53a642efe053624f7fd3f6 | 38..105
"""
ROWS = [line.split(" | ") for line in GOLDEN.strip().splitlines()]


@pytest.mark.parametrize(("backend", "size", "d", "seed", "first", "sha", "sizes"), ROWS)
def test_golden_values(backend, size, d, seed, first, sha, sizes):
    made = MADE[backend](int(size), int(d), int(seed))
    found = made.groups()
    assert found.dtype == torch.int32
    assert found[:20].tolist() == [int(number) for number in first.split()]
    assert hashlib.sha256(found.numpy().astype("<i4").tobytes()).hexdigest() == sha
    counted = made.sizes()
    assert [int(counted.min()), int(counted.max())] == [int(number) for number in sizes.split("..")]
    assert make_projection(f"authors-{backend}", int(size), int(d), int(seed)) == made


@pytest.mark.parametrize(
    ("backend", "size", "sha"),
    [
        ("stateless", 1_769_472, "1da8bb6be7808851"),
        ("materialized", 1_769_472, "c22738dfd4942a0d"),
        ("stateless", 1_774_080, "4ac0d5f1da30b895"),
        ("materialized", 1_774_080, "8d9660dca7ff18e3"),
    ],
)
def test_golden_values_of_minilm(backend, size, sha):
    found = MADE[backend](size, 7680, 42).groups()
    assert hashlib.sha256(found.numpy().astype("<i4").tobytes()).hexdigest()[:16] == sha


def test_blocks_in_any_order_are_parts_of_one_stream(monkeypatch):
    monkeypatch.setattr(authors, "_STRETCH", 100)
    whole = np.random.RandomState(9).randint(0, 2**32, 1000, dtype=np.uint32) % 37
    made = MaterializedGroups(1000, 37, 9)
    for start, stop in ((950, 1000), (0, 10), (333, 777), (100, 200), (99, 101), (5, 5), (0, 1000), (400, 401)):
        assert made.groups(start, stop).tolist() == whole[start:stop].tolist()
    assert made.groups(dtype=torch.int16).tolist() == whole.tolist()
    assert MaterializedGroups(1000, 37, 9).groups(720, 730).tolist() == whole[720:730].tolist()


def test_a_pass_in_order_draws_each_number_once(monkeypatch):
    monkeypatch.setattr(authors, "_STRETCH", 100)
    drawn = []
    randint = authors._randint
    monkeypatch.setattr(authors, "_randint", lambda d, count, g: drawn.append(count) or randint(d, count, g))
    made = MaterializedGroups(1000, 37, 9)
    for start in range(0, 1000, 100):
        made.groups(start, start + 100)
    assert sum(drawn) <= 1000 + 10_000  # and the look at the generator, if this is its first use


def test_the_users_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    MaterializedGroups(100, 7, 42).groups()
    assert torch.get_rng_state().equal(before)


def test_another_generator_of_torch_is_refused(monkeypatch):
    monkeypatch.setattr(authors, "_randint", lambda d, count, g: torch.zeros(count, dtype=torch.int32))
    authors._check_generator.cache_clear()
    with pytest.raises(
        GPartError, match=f"MT19937, and torch .* draws another's numbers: 0 in place of {4123659995 % 1000003}"
    ):
        MaterializedGroups(10, 3, 0).groups()
    authors._check_generator.cache_clear()


def test_what_torch_may_draw_differently_is_refused():
    MaterializedGroups(2**28, 2**28 - 1, 0)
    with pytest.raises(GPartError, match=f"2\\^28 = {2**28} .* got d={2**28}"):
        MaterializedGroups(2**28, 2**28, 0)
    with pytest.raises(GPartError, match="positions 3 to 9"):
        MaterializedGroups(8, 2, 0).groups(3, 9)


def test_the_states_are_no_part_of_the_value():
    made = MaterializedGroups(10, 3, 0)
    made.groups()
    assert made == MaterializedGroups(10, 3, 0) == pickle.loads(pickle.dumps(made))
    assert pickle.loads(pickle.dumps(made))._states == {}
    assert made.groups(device="meta").is_meta
