"""What holds for every data set: inherit, say how to make it and what items look like."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset


class DatasetTester(ABC):
    """Tests of a data set in its real on-disk format.

    Attributes:
        item: Shape and dtype of each tensor of an item, by key.
        length: Number of items.
    """

    item: dict[str, tuple[tuple[int, ...], torch.dtype]]
    length: int

    @abstractmethod
    def make(self, folder: Path) -> Dataset[dict[str, Any]]:
        """Write a small data set into `folder` if it is not there yet, and open it."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Dataset[dict[str, Any]]:
        return self.make(tmp_path)

    def test_length(self, data: Dataset[dict[str, Any]]) -> None:
        assert len(data) == self.length
        with pytest.raises(IndexError):  # else `for item in data` never ends
            data[self.length]

    def test_items(self, data: Dataset[dict[str, Any]]) -> None:
        for index in (0, self.length // 2, self.length - 1):
            found = {
                name: (tuple(value.shape), value.dtype)
                for name, value in data[index].items()
                if isinstance(value, torch.Tensor)
            }
            assert found == self.item
            for name, value in data[index].items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    assert value.isfinite().all(), name

    def test_items_are_the_same_each_time(
        self, data: Dataset[dict[str, Any]], tmp_path: Path
    ) -> None:
        again = self.make(tmp_path)
        for index in (0, self.length - 1):
            assert_same(data[index], data[index])
            assert_same(data[index], again[index])

    def test_changing_an_item_leaves_the_data_alone(self, data: Dataset[dict[str, Any]]) -> None:
        before = {k: torch.as_tensor(v).clone() for k, v in data[0].items()}
        for value in data[0].values():
            if isinstance(value, torch.Tensor):
                value.zero_()
        assert_same(data[0], before)

    def test_survives_pickling(self, data: Dataset[dict[str, Any]]) -> None:
        copy = pickle.loads(pickle.dumps(data))
        assert_same(copy[self.length - 1], data[self.length - 1])

    def test_loader_processes_give_the_same(self, data: Dataset[dict[str, Any]]) -> None:
        data[0]  # whatever is open now must not be shared with the processes
        loader = DataLoader(data, batch_size=2, num_workers=2)
        for index, batch in enumerate(loader):
            first = {name: value[0] for name, value in batch.items()}
            assert_same(first, data[2 * index])


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Compare two items key by key."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name
