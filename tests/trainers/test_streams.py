import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.trainers.streams import generator, stream_seed

ROLES = st.lists(st.text(max_size=5), max_size=3)


def test_the_seed_of_a_stream_is_pinned() -> None:
    # printf '[0,"order","1"]' | sha256sum, the first 16 digits, shifted right by one bit
    assert stream_seed(0, "order", "1") == 0x4DF5D0C09CDD1391 >> 1


@given(st.integers(0, 2**32 - 1), ROLES)
def test_a_stream_seed_has_63_bits(seed: int, role: list[str]) -> None:
    assert 0 <= stream_seed(seed, *role) < 2**63


@given(st.tuples(st.integers(0, 99), ROLES), st.tuples(st.integers(0, 99), ROLES))
def test_streams_are_equal_only_for_equal_seeds_and_roles(
    first: tuple[int, list[str]], second: tuple[int, list[str]]
) -> None:
    same = stream_seed(first[0], *first[1]) == stream_seed(second[0], *second[1])
    assert same == (first == second)


def test_role_words_are_not_joined() -> None:
    assert stream_seed(0, "head", "1") != stream_seed(0, "head1")


def test_a_generator_starts_its_stream_again_each_time() -> None:
    draws = [torch.randn(8, generator=generator(3, "head")) for _ in range(2)]
    assert torch.equal(*draws)


def test_what_one_stream_draws_moves_no_other_and_not_the_global_one() -> None:
    before = torch.get_rng_state()
    head = generator(3, "head")
    torch.randn(1000, generator=generator(3, "backbone"))
    assert torch.equal(
        torch.randn(8, generator=head), torch.randn(8, generator=generator(3, "head"))
    )
    assert torch.equal(torch.get_rng_state(), before)
