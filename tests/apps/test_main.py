from __future__ import annotations

import json

import pytest

from crossband import __version__
from crossband.apps.main import commands, main
from crossband.shared.registry import domain_packages


def test_commands_are_the_domains_and_the_tools() -> None:
    assert list(commands()) == [*domain_packages(), "bundle", "models", "env", "demo"]
    assert domain_packages()["spatiotemporal"] == "crossband.spatiotemporal"


def test_env_names_versions_and_domains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["crossband"] == __version__
    assert "spatiotemporal" in facts["domains"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"crossband {__version__}\n"
