from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossband.shared.config import OutputOptions
from crossband.shared.errors import EXIT_PARTIAL, CrossbandError, DataError
from crossband.shared.prediction import INDEX, predict_each


def work(job: str) -> dict:
    if job.startswith("bad"):
        raise DataError(f"{job} is damaged.")
    if job == "stop":
        raise KeyboardInterrupt
    return {"input": job, "output": job.upper()}


def run(jobs: list[str], folder: Path | None, **options: bool) -> int | None:
    return predict_each(
        jobs,
        work,
        name=str,
        describe=lambda entry: f"made {entry['output']}",
        options=OutputOptions(**options),
        folder=folder,
    )


def index(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["a", "b"], tmp_path) is None
    assert [entry["output"] for entry in index(tmp_path)] == ["A", "B"]
    assert "[2/2, 0 s left] made B" in capsys.readouterr().out


def test_a_broken_one_is_listed_and_the_others_go_on(tmp_path: Path, capsys) -> None:
    assert run(["a", "bad", "b"], tmp_path, json=True) == EXIT_PARTIAL
    assert index(tmp_path)[1] == {"input": "bad", "error": "bad is damaged."}
    captured = capsys.readouterr()
    printed = captured.out
    assert "left out bad" in captured.err  # so that the output is JSON and nothing else
    assert json.loads(printed[printed.index("{") :])["predictions"][2]["output"] == "B"


def test_the_only_one_raises_and_so_do_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bad is damaged"):
        run(["bad"], tmp_path)
    with pytest.raises(CrossbandError, match="None of the 2"):
        run(["bad1", "bad2"], tmp_path)
    assert len(index(tmp_path)) == 2


def test_after_ctrl_c_what_was_done_is_listed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(["a", "stop", "b"], tmp_path)
    assert [entry["input"] for entry in index(tmp_path)] == ["a"]


def test_quiet_and_without_a_folder(capsys: pytest.CaptureFixture) -> None:
    assert run(["a", "b"], None, quiet=True) is None
    assert capsys.readouterr().out == ""
