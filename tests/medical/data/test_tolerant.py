from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossband.medical.data.records import Record
from crossband.medical.data.tolerant import GoingOn
from crossband.medical.privacy import Names
from crossband.shared.errors import DataError
from crossband.shared.training.sampler import EpochIndex


class Items:
    """Gives the place and epoch; some places are broken."""

    def __init__(self, broken: set[int], count: int = 30) -> None:
        self.broken, self.count = broken, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        if int(index) in self.broken:
            raise DataError(f"{records()[int(index)].path} is damaged: copy it again.")
        return {"place": int(index), "epoch": getattr(index, "epoch", -1)}


def records(count: int = 30) -> list[Record]:
    return [Record(Path(f"/data/JANE_DOE_{i}.png"), f"JANE_DOE_{i}") for i in range(count)]


def test_the_next_image_takes_the_place_of_a_broken_one(capsys: pytest.CaptureFixture[str]) -> None:
    items = GoingOn(Items({3, 4, 29}), records(), Names(False))
    found = [items[EpochIndex(i, 7)] for i in range(30)]
    places = np.arange(30)
    places[[3, 4, 29]] = 5, 5, 0
    assert [item["place"] for item in found] == places.tolist()
    assert {item["epoch"] for item in found} == {7}
    items[EpochIndex(3, 8)]
    told = capsys.readouterr().err
    assert told.count("is damaged") == 3 and "JANE" not in told
    assert items[5] == {"place": 5, "epoch": -1}


def test_many_broken_files_in_a_row_stop() -> None:
    items = GoingOn(Items(set(range(12))), records(), Names(True))
    assert items[3]["place"] == 12
    with pytest.raises(DataError, match=r"10 files in a row .*JANE_DOE_9\.png.*data check"):
        items[0]
