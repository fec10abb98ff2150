from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.medical.config import SourceConfig
from crossband.medical.data.records import Collection, Record
from crossband.medical.data.splits import (
    folds,
    gather,
    leaks,
    patient_key,
    patients_split,
    require_disjoint,
)
from crossband.shared.errors import ConfigError, DataError

Put = Callable[..., Path]


def people(count: int, images: int = 2) -> list[Record]:
    return [
        Record(Path(f"{p}_{i}.png"), f"{p}_{i}", patient=f"P{p}", labels=(0.0,))
        for p in range(count)
        for i in range(images)
    ]


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 60), st.integers(0, 5), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_no_patient_crosses_and_no_split_is_empty(
    count: int, seed: int, val: float, test: float
) -> None:
    records = patients_split(people(count), seed, val, test)
    assert leaks(records) == []
    assert {record.split for record in records} >= {"val", "test"}
    assert [r.name for r in records] == [r.name for r in people(count)]


def test_a_split_keeps_to_its_parts_and_stays_as_a_set_grows() -> None:
    few, many = (patients_split(people(n, 1), 0, 0.1, 0.2) for n in (1000, 2000))
    parts = Counter(record.split for record in many)
    assert abs(parts["test"] / 2000 - 0.2) < 0.03 and abs(parts["val"] / 2000 - 0.1) < 0.03
    assert [r.split for r in few] == [r.split for r in many[:1000]]
    other = patients_split(people(1000, 1), 1, 0.1, 0.2)
    assert sum(a.split == b.split for a, b in zip(few, other, strict=True)) < 700


def test_images_of_nobody_are_split_one_by_one() -> None:
    records = [Record(Path(f"{n}"), str(n)) for n in range(200)]
    assert len({patient_key(record) for record in records}) == 200
    assert Counter(r.split for r in patients_split(records, 0, 0.2, 0.2))["test"] in range(25, 56)


def test_folds_take_every_patient_once() -> None:
    records = people(23)
    held = []
    for fold in range(5):
        cut = folds(records, 5, fold)
        assert leaks(cut) == []
        held.append({r.patient for r in cut if r.split == "val"})
    assert sum(map(len, held)) == 23 and len(set.union(*held)) == 23
    assert {len(part) for part in held} == {4, 5}


@pytest.mark.parametrize(("count", "fold"), [(1, 0), (5, 5), (5, -1), (24, 0)])
def test_folds_that_cannot_be(count: int, fold: int) -> None:
    with pytest.raises(ConfigError, match=r"--data\.fold"):
        folds(people(23), count, fold)


def test_a_patient_in_two_splits_is_refused_without_a_name() -> None:
    records = [
        Record(Path("a"), "a", patient="Secret", split="train"),
        Record(Path("b"), "b", patient="Secret", split="test"),
        Record(Path("c"), "c", patient="Fine", split="test"),
        Record(Path("d"), "d", split="train"),
    ]
    assert leaks(records) == ["Secret"]
    with pytest.raises(DataError, match="images of 1 patient") as caught:
        require_disjoint([Collection(Path("root"), "csv", (), False, records)])
    assert "1 image in train, 1 image in test" in str(caught.value)
    assert "Secret" not in str(caught.value) and "columns split=" in str(caught.value)


def put_set(put: Put, folder: str, splits: str, finding: str = "Nodule") -> str:
    rows = []
    for number, letter in enumerate(splits):
        split = {"t": "train", "v": "val", "e": "test"}[letter]
        put(f"{folder}/{number}.png")
        rows.append(f"{number}.png,P{number // 2},{split},{number % 2}\n")
    path = put(f"{folder}/labels.csv", f"image,patient,split,{finding}\n" + "".join(rows))
    return str(path.parent)


def counts(root: str, **options: object) -> tuple[int, int, int]:
    found = gather(SourceConfig(root=[root], **options))  # type: ignore[arg-type]
    assert leaks(found.train + found.val + found.test) == []
    return len(found.train), len(found.val), len(found.test)


def test_what_a_set_does_not_split_is_drawn(put: Put) -> None:
    whole = put_set(put, "whole", "tttttttttttttttt" + "vvvv" + "eeee")
    assert counts(whole) == (16, 4, 4)
    no_val = put_set(put, "no_val", "tttttttttttttttt" + "eeee")
    train, val, test = counts(no_val)
    assert test == 4 and val >= 2 and train + val == 16
    assert "no val given" in gather(SourceConfig(root=[no_val])).notes[0]
    assert counts(no_val, val_fraction=0.0) == (16, 0, 4)
    assert counts(whole, folds=5, fold=1) == (16, 4, 4)
    train, val, test = counts(whole, columns={"split": ""})
    assert val >= 2 and test >= 2 and train + val + test == 24


def test_leaks_of_a_set_stop_it_unless_it_is_split_anew(put: Put) -> None:
    root = put_set(put, "leaky", "ttttttte")
    with pytest.raises(DataError, match="more than one split"):
        gather(SourceConfig(root=[root]))
    assert sum(counts(root, columns={"split": ""})) == 8


def test_several_sets_go_together_if_their_findings_do(put: Put) -> None:
    roots = [put_set(put, "one", "ttttvvee"), put_set(put, "two", "ttvv")]
    both = gather(SourceConfig(root=roots))
    assert (len(both.train), len(both.val), len(both.test)) == (6, 4, 2)
    assert both.findings == ("Nodule",)
    other = put_set(put, "three", "ttvv", "Mass")
    with pytest.raises(DataError, match="different findings"):
        gather(SourceConfig(root=[roots[0], other]))
    loose = gather(SourceConfig(root=[roots[0], other]), labelled=False)
    assert loose.findings == () and len(loose.train) == 6
    assert {record.labels for record in loose.train} == {()}


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5)])
def test_fractions_that_cannot_be(put: Put, val: float, test: float) -> None:
    root = put_set(put, "one", "ttvv")
    with pytest.raises(ConfigError, match=r"--data\.val_fraction"):
        gather(SourceConfig(root=[root], val_fraction=val, test_fraction=test))
