"""A stopped run that is resumed ends with bitwise the weights of an unbroken one."""

import csv
import os
import signal

import pytest
import torch
from lightning import Callback
from torch import nn
from torch.utils.data import Dataset

from crossband.shared.checkpoints import load_checkpoint
from crossband.shared.config import (
    LoaderConfig,
    OptimizerConfig,
    RunOptions,
    ScheduleConfig,
    TrainerConfig,
)
from crossband.shared.errors import EXIT_INTERRUPTED, CheckpointError, CrossbandError
from crossband.shared.tasks.base import Task
from crossband.shared.training import loop
from crossband.shared.training.callbacks import TrainingInterrupted
from crossband.shared.training.run_folder import RunFolder


class Points(Dataset):
    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "y": self.x[index].sum().reshape(1)}


class Regression(Task):
    def loss(self, batch):
        return (self(batch["x"]) - batch["y"]).square().mean()


class StopAt(Callback):
    """Sends a signal, or dies, after some steps."""

    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            self.step = None
            if self.how == "kill":
                raise RuntimeError("killed")  # nothing may be saved on the way out
            os.kill(os.getpid(), self.how)

    def on_validation_start(self, trainer, pl_module):
        if self.step == "validation" and trainer.current_epoch == 1:
            os.kill(os.getpid(), self.how)


def run(
    folder, monkeypatch, *, stop=None, resume=False, workers=0, dropout=0.3, batch=4, **trainer
):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.GELU(), nn.Linear(8, 1))
    task = Regression(network, OptimizerConfig(lr=1e-2), ScheduleConfig(warmup_fraction=0.1))
    data = loop.Data(
        Points(22), Points(7), LoaderConfig(batch_size=batch, num_workers=workers), seed=5
    )
    settings = {"max_epochs": 3, "save_every_n_steps": 2, "ema_decay": 0.9, **trainer}
    with monkeypatch.context() as patch:
        if stop:
            make = loop.Trainer
            patch.setattr(
                loop, "Trainer", lambda *, callbacks, **kw: make(callbacks=[*callbacks, stop], **kw)
            )
        return loop.fit(
            task,
            data,
            RunFolder(folder),
            TrainerConfig(**settings),
            RunOptions(seed=5, device="cpu", quiet=True),
            describe=lambda: {"task": "toy"},
            resume=resume,
        )


def state(folder):
    last = torch.load(folder / "last.ckpt", weights_only=True)
    return {**last["state_dict"], **{f"best.{k}": v for k, v in best(folder).items()}}


def best(folder):
    return load_checkpoint(folder / "best.safetensors").state_dict


def books(folder):
    """Rows of the history without what a clock says."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("minutes", "waiting")} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "step, how",
    [
        (2, signal.SIGINT),
        (9, signal.SIGTERM),
        (11, signal.SIGINT),  # the last step of an epoch
        ("validation", signal.SIGINT),
        (9, "kill"),
        (3, "kill"),
    ],
)
def test_resumed_equals_unbroken(tmp_path, monkeypatch, step, how):
    run(tmp_path / "whole", monkeypatch)
    error = RuntimeError if how == "kill" else TrainingInterrupted
    with pytest.raises(error) as caught:
        run(tmp_path / "parts", monkeypatch, stop=StopAt(step, how))
    if how != "kill":
        assert caught.value.exit_code == EXIT_INTERRUPTED
        assert "--resume" in str(caught.value)
    run(tmp_path / "parts", monkeypatch, resume=True)
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert books(tmp_path / "whole") == books(tmp_path / "parts")


@pytest.mark.parametrize("step", [1, 2, 4])
def test_resumed_equals_unbroken_with_workers_and_accumulation(tmp_path, monkeypatch, step):
    options = {"workers": 2, "accumulate_grad_batches": 2, "max_epochs": 2}
    run(tmp_path / "whole", monkeypatch, **options)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "parts", monkeypatch, stop=StopAt(step, signal.SIGINT), **options)
    run(tmp_path / "parts", monkeypatch, resume=True, **options)
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_a_finished_run_resumes_to_itself(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch)
    before = state(tmp_path)
    run(tmp_path, monkeypatch, resume=True)
    assert same(before, state(tmp_path))


def test_a_damaged_state_is_named(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, max_epochs=1)
    (tmp_path / "last.ckpt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="last.ckpt"):
        run(tmp_path, monkeypatch, resume=True)


def test_a_full_disk_keeps_the_last_state(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, max_epochs=1)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lightning.Trainer.save_checkpoint", full)
        with pytest.raises(CrossbandError, match="No space left"):
            run(tmp_path, patch, resume=True, max_epochs=2)
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "loss", lambda self, batch: torch.tensor(float("nan")))
    with pytest.raises(CrossbandError, match="loss became nan"):
        run(tmp_path, monkeypatch)


def test_early_stopping_and_time_limit_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Regression, "loss", lambda self, batch: self(batch["x"]).mean() * 0 + 1.0)
    book = run(tmp_path / "patience", monkeypatch, patience=2, max_epochs=50)
    assert [row["epoch"] for row in book.history] == [1, 2, 3]
    book = run(tmp_path / "clock", monkeypatch, max_minutes=1e-6, max_epochs=50)
    assert len(book.history) == 1
    assert (tmp_path / "clock" / "best.safetensors").exists()


def test_selecting_the_last_keeps_the_newest_weights(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, select="last", ema_decay=0.0)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    kept = best(tmp_path)
    assert all(torch.equal(last[f"model.{key}"], value) for key, value in kept.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_train_as_one(tmp_path, monkeypatch):
    options = {"dropout": 0.0, "max_epochs": 2, "ema_decay": 0.0, "limit_train_batches": 5}
    run(tmp_path / "one", monkeypatch, **options)
    run(tmp_path / "two", monkeypatch, batch=2, devices=2, strategy="ddp_fork", **options)
    one, two = best(tmp_path / "one"), best(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


def test_the_end_is_validated_whatever_the_interval(tmp_path, monkeypatch):
    book = run(tmp_path / "a", monkeypatch, check_val_every_n_epoch=2)
    assert [row["epoch"] for row in book.history] == [2, 3]
    short = run(tmp_path / "b", monkeypatch, check_val_every_n_epoch=9, max_minutes=1e-9)
    assert [row["epoch"] for row in short.history] == [1]
    assert (tmp_path / "b/best.safetensors").is_file()


def test_a_last_epoch_that_is_gone_on_with_is_validated_too(tmp_path, monkeypatch):
    long = {"check_val_every_n_epoch": 9}
    with pytest.raises(TrainingInterrupted):
        run(tmp_path, monkeypatch, stop=StopAt(14, signal.SIGINT), **long)
    book = run(tmp_path, monkeypatch, resume=True, **long)
    assert [row["epoch"] for row in book.history] == [3]


def test_a_task_says_which_metric_chooses_the_best_weights(tmp_path, monkeypatch):
    class Scored(Regression):
        monitor = ("val_score", -1)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_score", [0.2, 0.9, 0.4][self.current_epoch], batch_size=1)

    monkeypatch.setitem(globals(), "Regression", Scored)
    book = run(tmp_path, monkeypatch)
    assert book.best == {"epoch": 2, "val_score": pytest.approx(0.9)}
    assert load_checkpoint(tmp_path / "best.safetensors").config["training"]["epoch"] == 2


def test_errors_of_loader_processes_lose_their_traceback():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1\ncrossband.shared.errors.DataError: a.png: is damaged.'
    )
    found = loop._from_worker(CrossbandError(text))
    assert str(found) == "a.png: is damaged."
    plain = CrossbandError("as it is")
    assert loop._from_worker(plain) is plain


class Clock:
    """Stands for the module `time`; stands still but for what the test lets take time."""

    now = 0.0

    def monotonic(self):
        return self.now

    def slow(self, function, seconds):
        def slowed(*args):
            self.now += seconds
            return function(*args)

        return slowed


@pytest.mark.parametrize("stopped", [False, True])
def test_the_share_of_waiting_is_the_loaders(tmp_path, monkeypatch, stopped):
    # Five batches of four items and one of two; 0.25 s an item, 1 s a step, 2 s a saved state.
    clock, settings = Clock(), {"max_epochs": 2, "ema_decay": 0.0, "save_every_n_steps": 4}
    monkeypatch.setattr("crossband.shared.training.callbacks.time", clock)
    monkeypatch.setattr(Points, "__getitem__", clock.slow(Points.__getitem__, 0.25))
    monkeypatch.setattr(Regression, "loss", clock.slow(Regression.loss, 1.0))
    monkeypatch.setattr(RunFolder, "save_state", clock.slow(RunFolder.save_state, 2.0))
    if stopped:  # after the fourth step, for an hour
        with pytest.raises(TrainingInterrupted):
            run(tmp_path, monkeypatch, stop=StopAt(3, signal.SIGINT), **settings)
        clock.now += 3600
    book = run(tmp_path, monkeypatch, resume=stopped, **settings)
    # The loader is waited for before every step of an epoch but its first, and the run's first.
    # The state is saved after step 4, and after epoch 1, which is in the time of epoch 2.
    loading, steps = 22 * 0.25, 6 * 1.0
    first = (3.5 / (loading + steps)) if stopped else 4.5 / (loading + steps + 2)
    second = 4.5 / (loading + steps + 4)
    assert [row["waiting"] for row in book.history] == pytest.approx([first, second], abs=1e-4)
