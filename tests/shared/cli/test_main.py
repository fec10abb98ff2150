from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from crossband import __version__
from crossband.shared.cli.domain import Domain, Verb
from crossband.shared.cli.main import EXIT_BROKEN_PIPE, run_domain, run_umbrella
from crossband.shared.config import OutputOptions
from crossband.shared.errors import ConfigError, CrossbandError, MissingExtraError

BEHAVIOUR: dict[str, Any] = {}


@dataclass(kw_only=True)
class ToyConfig(OutputOptions):
    pass


def run(config: ToyConfig) -> int | None:
    result = BEHAVIOUR["run"]
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a toy domain whose verbs do what the test says."""
    module = type(sys)("toy_cli")
    module.run = run
    monkeypatch.setitem(sys.modules, "toy_cli", module)
    verb = Verb(ToyConfig, "toy_cli:run", "do it", ("crossband toy train",))
    missing = Verb(ToyConfig, "absent_package.sub:run", "cannot", ())
    domain = Domain("toy", "A toy.", {"train": verb, "data check": verb, "other": missing})

    def call(*argv: str, result: Any = None) -> int:
        BEHAVIOUR["run"] = result
        return run_domain(domain, argv)

    return call


@pytest.mark.parametrize(
    ("result", "code", "sentence"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (3, 3, ""),
        (ConfigError("no such thing."), 2, "crossband: error: no such thing."),
        (CrossbandError("two\n  lines."), 2, "crossband: error: two lines."),
        (MissingExtraError("onnx", "export"), 2, "pip install 'crossband[export]'"),
        (KeyboardInterrupt(), 130, "crossband: interrupted."),
        (KeyboardInterrupt("stopped; go on with --resume"), 130, "stopped; go on with --resume"),
        (OSError(errno.ENOSPC, "No space left on device", "a.nc"), 2, "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "b.nc"), 2, "b.nc: permission denied"),
        (MemoryError(), 1, "use a smaller batch"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (run again with --debug"),
    ],
)
def test_exit_codes_and_sentences(
    toy: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    result: Any,
    code: int,
    sentence: str,
) -> None:
    assert toy("train", result=result) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == (1 if sentence else 0)


def test_debug_shows_the_traceback(
    toy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy("train", "--debug", result=KeyError("x")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_two_word_verbs(toy: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert toy("data", "check", result=3) == 3
    assert toy("data") == 0
    assert "data check" in capsys.readouterr().out
    assert toy("data", "chekc") == 2
    assert "Did you mean 'data check'?" in capsys.readouterr().err


def test_unknown_verb_and_version(
    toy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy("trian") == 2
    assert "unknown verb 'trian'. Did you mean 'train'?" in capsys.readouterr().err
    assert toy("--version") == toy("train", "--version") == 0
    assert capsys.readouterr().out == f"crossband {__version__}\n" * 2


def test_missing_package_names_the_pip_command(
    toy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy("other") == 2
    assert "absent_package" in capsys.readouterr().err


def test_umbrella_loads_only_the_command_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Domain:
        raise ConfigError("broken.")

    def commands() -> dict[str, Callable[[], Domain | Verb]]:
        return {"ok": lambda: Domain("ok", "Fine.", {}), "broken": broken}

    assert run_umbrella(commands, (), ["ok"]) == 0
    assert run_umbrella(commands, (), ["broken"]) == 2
    assert run_umbrella(commands, (), ["okk"]) == 2
    assert "unknown command 'okk'. Did you mean 'ok'?" in capsys.readouterr().err


def test_broken_pipe_is_quiet() -> None:
    code = (
        "import sys; from crossband.shared.cli.main import guarded\n"
        "sys.exit(guarded(lambda: print('x\\n' * 10**6) or 0, []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=30) == EXIT_BROKEN_PIPE
    assert errors == b""
