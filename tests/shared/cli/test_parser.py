from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from crossband.shared.cli.domain import Verb
from crossband.shared.cli.parser import dump_config, parse, recipes_of
from crossband.shared.config import OutputOptions, TrainerConfig, option
from crossband.shared.errors import ConfigError


@dataclass(kw_only=True)
class ToyData:
    root: list[str] = option(factory=list, help="files or folders")
    split: list[float] = option(factory=lambda: [0.7, 0.3], help="parts")
    test: list[str] = option(factory=list, help="two dates")
    fit: Literal["error", "pad"] = option("error", "what to do with odd grids")
    mask: str | None = option(None, "name of the mask")


@dataclass(kw_only=True)
class ToyConfig(OutputOptions):
    weights: str = option(help="checkpoint")
    inputs: list[str] = option(factory=list, help="files")
    dry_run: bool = option(False, "one batch only")
    depth: int | None = option(None, "depth")
    lr: float = option(1e-3, "learning rate")
    arguments: dict[str, Any] = option(factory=dict, help="constructor arguments")
    data: ToyData = option(factory=ToyData)
    trainer: TrainerConfig = option(factory=TrainerConfig)


VERB = Verb(ToyConfig, "builtins:print", "toy", examples=(), positional="inputs")
W = "--weights=w"


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verb:
    """A verb whose recipes lie in two packages; both have `tiny`. Importing them fails."""
    for system, names in {"one": ("tiny", "big"), "two": ("tiny",)}.items():
        folder = tmp_path / "toy_recipes" / system
        (folder / "recipes").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        for name in names:
            text = "lr: 0.1\ntrainer:\n  max_epochs: 3\n  patience: 4\n"
            (folder / "recipes" / f"{name}.yaml").write_text(text)
    (tmp_path / "toy_recipes" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return Verb(ToyConfig, "builtins:print", "", (), recipes=("toy_recipes.one", "toy_recipes.two"))


def refusal(*argv: str, verb: Verb = VERB) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(verb, argv)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_lists_take_several_values_and_repeat() -> None:
    config = parse(VERB, [W, "--data.root", "a", "b", "--data.root", "2019", "--data.root=c d"])
    assert config.data.root == ["a", "b", "2019", "c d"]
    config = parse(VERB, [W, "--data.split", "0.5", "-1", "5e-1", "--data.test=[2019-01-01, x]"])
    assert config.data.split == [0.5, -1.0, 0.5]
    assert config.data.test == ["2019-01-01", "x"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--dry-run"], True),
        (["--dry_run"], True),
        (["--dry-run", "true"], True),
        (["--dry-run", "false"], False),
        (["--dry-run=False"], False),
    ],
)
def test_bools_may_be_bare_and_dashes_are_underscores(words: list[str], value: bool) -> None:
    assert parse(VERB, [W, *words]).dry_run is value


def test_bare_bool_does_not_swallow_the_next_word() -> None:
    config = parse(VERB, [W, "--dry-run", "a.nc", "--trainer.compile", "--", "-b.nc"])
    assert config.inputs == ["a.nc", "-b.nc"]
    assert config.dry_run and config.trainer.compile


@pytest.mark.parametrize("text", ["12", "1e3", "true", "2019-01-01", "[a]", "a: b", "a=b", "-"])
def test_texts_stay_as_typed(text: str) -> None:
    config = parse(VERB, [f"--weights={text}", "--data.mask", text, "--data.root", "x" + text])
    assert (config.weights, config.data.mask, config.data.root) == (text, text, ["x" + text])


def test_pairs_become_a_dict_of_typed_values() -> None:
    words = ["--arguments", "dim=64", "rate=5e-4", "name=full", "flag=true", "size=[1, 2]", "n="]
    expected = {"dim": 64, "rate": 5e-4, "name": "full", "flag": True, "size": [1, 2], "n": None}
    assert parse(VERB, [W, *words]).arguments == expected
    assert "KEY=VALUE" in refusal(W, "--arguments", "dim")


def test_recipe_below_config_below_flags(recipes: Verb, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("trainer:\n  max_epochs: 5\n  ema_decay: 1e-2\n")
    # The order of the words does not matter.
    words = ["--trainer.ema_decay", "0.5", "--config", str(own), "--recipe", "big", W]
    config = parse(recipes, words)
    assert config.lr == 0.1  # recipe
    assert config.trainer.patience == 4  # recipe, kept beside the file's keys
    assert config.trainer.max_epochs == 5  # file over recipe
    assert config.trainer.ema_decay == 0.5  # flag over file


def test_recipes_are_found_without_import_and_told_apart(recipes: Verb) -> None:
    assert set(recipes_of(recipes)) == {"big", "one/tiny", "two/tiny"}
    assert "'big'" in refusal("--recipe", "bug", verb=recipes)
    assert "unknown option --recipe" in refusal("--recipe", "big")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--trainer.max_epoch", "3"], ["--trainer.max_epoch.", "'--trainer.max_epochs'?"]),
        (["--max_epochs", "3"], ["Did you mean '--trainer.max_epochs'?"]),
        (["--weigths", "x"], ["Did you mean '--weights'?"]),
        (["--dryrun"], ["Did you mean '--dry-run'"]),
        (["--zzzzzz"], ["--help-all"]),
        (["-x"], ["unknown option -x"]),
        (["--lr"], ["--lr needs a value"]),
        (["--lr", "--quiet"], ["--lr needs a value"]),
        (["--data.root"], ["--data.root needs a value"]),
        (["--trainer.max_epochs", "abc"], ["--trainer.max_epochs: 'abc' is not a whole number."]),
        (["--trainer.max_epochs=1.5"], ["--trainer.max_epochs: '1.5' is not a whole number."]),
        (["--depth=x"], ["--depth: 'x' is not a whole number."]),
        (["--lr", "fast"], ["--lr: 'fast' is not a number."]),
        (["--quiet=maybe"], ["--quiet: 'maybe' is not true or false."]),
        (["--data.split", "1", "b"], ["--data.split: 'b' is not a number."]),
        (["--data.fit", "pax"], ["'pax' is not one of error, pad.", "Did you mean 'pad'?"]),
        (["--config", "absent.yaml"], ["--config absent.yaml: no such file"]),
    ],
)
def test_refusals_are_one_sentence_with_a_remedy(words: list[str], parts: list[str]) -> None:
    text = refusal(W, *words)
    for part in parts:
        assert part in text


def test_missing_required_and_surplus_arguments() -> None:
    assert refusal() == "--weights is missing: checkpoint. See --help for examples."
    verb = Verb(ToyConfig, "builtins:print", "", (), positional="weights")
    assert refusal(verb=verb).startswith("WEIGHTS is missing")
    assert "unexpected argument 'b': this command takes WEIGHTS" in refusal("a", "b", verb=verb)
    two = Verb(ToyConfig, "builtins:print", "", (), positional=("weights", "inputs"))
    config = parse(two, ["w.safetensors", "a.nc", "b.nc"])
    assert (config.weights, config.inputs) == ("w.safetensors", ["a.nc", "b.nc"])


def test_yaml_numbers_and_dates_are_words_where_words_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "weights: 12\nlr: 1e-2\ndata:\n  test: [2019-01-01, 2020]\n  mask: null\n  fit: pad\n"
    )
    config = parse(VERB, ["--config", str(path)])
    assert (config.weights, config.lr, config.data.mask) == ("12", 0.01, None)
    assert (config.data.test, config.data.fit) == (["2019-01-01", "2020"], "pad")


def test_pairs_merge_with_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("arguments:\n  dim: 8\n  depth: 2\n")
    config = parse(VERB, [W, "--arguments", "depth=3", "--config", str(path)])
    assert config.arguments == {"dim": 8, "depth": 3}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("weights: null\n", "--weights is missing"),
        ("data: 3\n", "unknown key 'data'"),
        ("trainer:\n  max_epoch: 3\n", "unknown key 'trainer.max_epoch'. Did you mean 'trainer."),
        ("max_epochs: 3\n", "Did you mean 'trainer.max_epochs'?"),
        ("trainer:\n  max_epochs: many\n", "trainer.max_epochs: 'many' is not a whole number."),
        ("data:\n  root: era5\n", "data.root: 'era5' is not a list: write [era5]."),
        ("trainer: [\n", "is not valid YAML in line"),
        ("just text\n", "expected 'option: value' lines"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_refusals_of_config_files_name_the_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    message = refusal("--config", str(path), "--data.mask", "m")
    assert "own.yaml" in message or text.startswith("weights")
    assert part in message


def test_a_bad_flag_is_told_from_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("lr: 0.2\n")
    assert refusal(W, "--config", str(path), "--lr", "x").startswith("--lr: 'x'")


def test_print_config_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [W, "--data.root", "a", "--data.test", "2019-01-01", "2019-02-01", "--lr", "1e-6"]
    config = parse(VERB, [*words, "--arguments", "dim=3", "--depth", "2"])
    with pytest.raises(SystemExit) as stop:
        parse(VERB, [*words, "--arguments", "dim=3", "--depth", "2", "--print_config"])
    assert stop.value.code in (0, None)
    printed = capsys.readouterr().out
    for number, text in enumerate((printed, dump_config(config))):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert parse(VERB, ["--config", str(path)]) == config
    assert yaml.safe_load(printed) == yaml.safe_load(dump_config(config))


def test_print_config_does_not_ask_for_required_options() -> None:
    with pytest.raises(SystemExit):
        parse(VERB, ["--print-config"])
