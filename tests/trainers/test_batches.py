"""Which rows make a batch: everything once, like lengths together, chance for the rest."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdsweep.trainers.batches import (
    MEGA_BATCH,
    Split,
    collate,
    epoch_batches,
    length_batches,
    steps_per_epoch,
)

LENGTHS = torch.randint(3, 60, (403,), generator=torch.Generator().manual_seed(0))


def split_of(*rows: list[int]) -> Split:
    ids = [token for row in rows for token in row]
    offsets = torch.tensor([0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()])
    return Split(
        input_ids=torch.tensor(ids),
        token_type_ids=torch.tensor([token % 2 for token in ids]),
        offsets=offsets,
        labels=torch.arange(len(rows)),
    )


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=60),
    batch_size=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_exactly_once_an_epoch(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(torch.tensor(lengths), batch_size=batch_size, seed=seed, epoch=epoch)
    assert sorted(torch.cat(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == steps_per_epoch(len(lengths), batch_size=batch_size)


def test_the_last_partial_batch_counts_as_a_step() -> None:
    assert steps_per_epoch(33, batch_size=16) == 3


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(epoch_batches(LENGTHS, batch_size=8, seed=seed, epoch=epoch)).tolist()

    first = order(0, 0)
    torch.rand(100)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first


def test_rows_of_like_length_are_together() -> None:
    lengths = torch.randint(3, 60, (MEGA_BATCH * 8,), generator=torch.Generator().manual_seed(1))
    batches = epoch_batches(lengths, batch_size=8, seed=0, epoch=0)
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    # Rows in the order of the file would need almost twice as many.
    assert padded < 1.06 * int(lengths.sum())


def test_batches_come_neither_by_length_nor_in_the_order_of_the_file() -> None:
    longest = [
        int(LENGTHS[rows].max()) for rows in epoch_batches(LENGTHS, batch_size=8, seed=0, epoch=0)
    ]
    assert longest != sorted(longest)


def test_length_order_breaks_ties_by_the_order_of_the_file() -> None:
    batches = length_batches(torch.tensor([5, 3, 5, 3]), 3)
    assert [rows.tolist() for rows in batches] == [[1, 3, 0], [2]]


def test_a_batch_is_padded_to_its_longest_row() -> None:
    split = split_of([1, 2, 3, 4], [5, 6], [7, 8, 9])
    batch = collate(split, torch.tensor([2, 1]), pad_token_id=99)
    assert batch.input_ids.tolist() == [[7, 8, 9], [5, 6, 99]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.token_type_ids.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [2, 1]
