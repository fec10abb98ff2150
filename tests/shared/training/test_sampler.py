import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossband.shared.errors import ConfigError
from crossband.shared.training.sampler import EpochBatchSampler, EpochIndex, item_random


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_holds_every_item_once_in_an_order_of_seed_and_epoch(length, size, seed, epoch):
    first, second = (EpochBatchSampler(length, size, seed=seed) for _ in range(2))
    for sampler in (first, second):
        sampler.set_epoch(epoch)
    batches = list(first)
    assert batches == list(second)
    assert len(batches) == len(first)
    assert sorted(i for batch in batches for i in batch) == list(range(length))


def test_epochs_differ():
    sampler = EpochBatchSampler(50, 10, seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] != orders[1] != orders[2]


def test_skip_leaves_out_the_first_batches_once():
    sampler = EpochBatchSampler(50, 10, seed=0)
    whole = list(sampler)
    sampler.skip = 2
    assert list(sampler) == whole[2:]
    assert list(sampler) == whole
    assert len(sampler) == 5


def test_ranks_share_the_order_of_one_process():
    whole = [i for batch in EpochBatchSampler(40, 4, seed=3) for i in batch]
    ranks = [
        [i for b in EpochBatchSampler(40, 4, seed=3, rank=r, world_size=2) for i in b]
        for r in range(2)
    ]
    assert [i for pair in zip(*ranks, strict=True) for i in pair] == whole


def test_ranks_have_equally_many_batches():
    for length in (1, 5, 7, 9):
        counts = {
            len(list(EpochBatchSampler(length, 2, seed=0, rank=r, world_size=3))) for r in range(3)
        }
        assert len(counts) == 1


def test_without_shuffling_the_order_is_kept():
    batches = list(EpochBatchSampler(5, 2, seed=0, shuffle=False))
    assert batches == [[0, 1], [2, 3], [4]]


def test_a_last_batch_that_is_too_small_is_left_out():
    for length, lengths in ((7, [3, 3]), (8, [3, 3, 2]), (6, [3, 3]), (1, [])):
        order = EpochBatchSampler(length, 3, seed=0, smallest=2)
        assert [len(batch) for batch in order] == lengths and len(order) == len(lengths)
    ranks = [EpochBatchSampler(9, 2, seed=0, rank=r, world_size=2, smallest=2) for r in range(2)]
    assert [len(list(rank)) for rank in ranks] == [2, 2]  # 5 items each


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigError, match="batch_size 0"):
        EpochBatchSampler(5, 0, seed=0)


def test_indices_know_their_epoch_and_survive_loader_processes():
    order = EpochBatchSampler(4, 2, seed=0)
    order.set_epoch(3)
    index = next(iter(order))[0]
    copy = pickle.loads(pickle.dumps(index))
    assert (copy, copy.epoch) == (index, 3)
    draws = [item_random(7, i).random() for i in (index, copy, EpochIndex(index, 4), int(index))]
    assert draws[0] == draws[1] and len(set(draws)) == 3
