"""Troublemaker Learning in three stages: `crossband low-light train`.

1. troublemaker: learns from pairs to darken, `smooth_l1(TM(N), L)`;
2. predictor: brightens what the frozen troublemaker darkened, `smooth_l1(PM(TM(N)), N)`;
3. enhancer: learns what is left to subtract, `smooth_l1(c - EM(c), N)` with `c = PM(TM(N))`.

Without pairs a camera model takes the troublemaker's place (`--dimming camera`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crossband.apps.low_light.config import DataConfig, TrainConfig
from crossband.apps.low_light.data.dimming import dim, get_camera, to_linear
from crossband.apps.low_light.data.pairs import Pair, Pairs, find_pairs, readable_pairs
from crossband.apps.low_light.data.photos import (
    Photos,
    PhotoStore,
    fingerprint,
    readable,
    split_photos,
)
from crossband.apps.low_light.model import TML, UGDC, denormalise, normalise
from crossband.apps.low_light.official import from_official, network_part, stem_of
from crossband.apps.low_light.training_report import write_report
from crossband.shared.checkpoints import (
    load_checkpoint,
    load_state,
    read_state_dict,
    save_checkpoint,
)
from crossband.shared.cli.parser import dump_config
from crossband.shared.config import TrainerConfig
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, did_you_mean
from crossband.shared.tasks.restoration import RestorationTask
from crossband.shared.training.loop import Data, fit
from crossband.shared.training.resume import stored_options
from crossband.shared.training.run_folder import RunFolder

STAGES = ("troublemaker", "predictor", "enhancer")
_PART = {"troublemaker": "tm", "predictor": "pm", "enhancer": "em"}
_VALIDATION_SEED = 20_240_204
_DRAWS = 4  # ways to darken a validation photograph
_LIGHT_PHOTOS = 64  # training photographs that tell how dark it gets


@dataclass
class Material:
    """What there is to learn from.

    Attributes:
        photos: Well-lit photographs by part, train and val.
        pairs: Pairs by part.
        store: Reads them.
        notes: What was left out, and why.
    """

    photos: dict[str, list[Path]]
    pairs: dict[str, list[Pair]]
    store: PhotoStore
    notes: list[str]


class Prepare:
    """Makes a stage's input and target, normalised, from a batch in [0, 1].

    Args:
        stage: Which stage.
        darken: Maps well-lit images (B, 3, H, W) in [0, 1] to normalised dark ones.
        predictor: PM, for the third stage.
    """

    def __init__(
        self, stage: str, darken: Callable[[Tensor], Tensor], predictor: UGDC | None
    ) -> None:
        """Keep the parts."""
        self.stage, self.darken, self.predictor = stage, darken, predictor

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `image` and `target`."""
        bright = batch["target"]
        if self.stage == "troublemaker":
            image, target = normalise(bright), normalise(batch["image"])
        else:
            image, target = self.darken(bright), normalise(bright)
        if self.stage == "enhancer":
            assert self.predictor is not None
            image = self.predictor.to(image.device)(image)
        layout = torch.channels_last
        return {
            "image": image.contiguous(memory_format=layout),
            "target": target.contiguous(memory_format=layout),
        }


class Darken:
    """What takes the light away: the troublemaker, a camera, or either by chance.

    Args:
        kind: troublemaker, camera or both.
        camera: Name of the camera model.
        troublemaker: TM, frozen; None with a camera.
    """

    def __init__(self, kind: str, camera: str, troublemaker: UGDC | None) -> None:
        """Keep the parts."""
        self.kind, self.camera, self.troublemaker = kind, get_camera(camera), troublemaker

    def __call__(self, bright: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to normalised dark images."""
        if self.kind == "camera":
            return normalise(dim(bright, self.camera))
        assert self.troublemaker is not None
        dark = self.troublemaker.to(bright.device)(normalise(bright))
        if self.kind == "troublemaker":
            return dark
        by_camera = torch.rand(len(bright), 1, 1, 1, device=bright.device) < 0.5
        return torch.where(by_camera, normalise(dim(bright, self.camera)), dark)


def train(config: TrainConfig) -> None:
    """Train the stages asked for; leave one checkpoint that predict takes, and a report."""
    if config.resume:
        folder = RunFolder(config.resume)
        if not folder.config.is_file():
            raise ConfigError(
                f"--resume {config.resume}: there is no run there; start one without --resume."
            )
        from crossband.apps.low_light.cli import DOMAIN

        config = stored_options(DOMAIN.verbs["train"], folder, config)
    else:
        folder = RunFolder.create(config.out, config.model)
        if folder.config.exists():
            raise ConfigError(
                f"{folder.path} already holds a run: choose another --out, or go on with it by "
                f"--resume {folder.path}."
            )
    stages = _stages(config)
    trainers = {stage: _trainer(config, stage) for stage in stages}
    size = _size(config)
    material = gather(config.data, config.seed, need_pairs="troublemaker" in stages)
    trained = _given(config, stages)
    if not config.quiet:
        print(_summary(config, folder, material, stages), flush=True)
    if config.dry_run:
        for stage in stages:
            _try_one_batch(config, stage, size, material, trained)
        print("dry run: options, data and one batch are in order; nothing was written.")
        return
    with torch.device("meta"):  # a size that cannot be is told before anything is written
        UGDC(*size, config.stem)
    for name, network in trained.items():
        if (network.height, network.width) != size and not network.any_size:
            raise ConfigError(
                f"--{name} was trained at {network.height} x {network.width}: give --size "
                f"{network.height} {network.width}, not {size[0]} {size[1]}."
            )
        if name == "predictor" and (network.height, network.width) != size:
            raise ConfigError(
                f"--predictor was trained at {network.height} x {network.width}, the enhancer is "
                f"to be at {size[0]} x {size[1]}: give --size {network.height} {network.width}."
            )
    if not config.resume:
        folder.save_config_text(dump_config(config))
    for stage in stages:
        part = folder.stage(stage)
        if not config.quiet:
            print(f"\nstage {stage}", flush=True)
        if not part.results.is_file():  # written when a stage has ended
            book = _train_stage(config, stage, size, material, trained, trainers[stage], part)
            part.write_results({"best": book.best, "history": book.history})
        trained[stage] = load_stage(part.best, stage)
    description = _description(config, material, folder, stages)
    if "predictor" in trained:
        description["darkest_light"] = darkest_light(config, material, trained)
    save_final(folder, trained, description)
    images = validation_images(config, material, trained) if "predictor" in trained else []
    names = [path.name for path in material.photos["val"]]
    write_report(config, folder, dict(zip(names, images, strict=False)), stages, description)


def gather(data: DataConfig, seed: int, *, need_pairs: bool) -> Material:
    """Find and split photographs and pairs, and leave out what cannot be read.

    Raises:
        ConfigError: no data given, or a split that cannot be.
        DataError: data that cannot be read.
    """
    if not data.root and not data.paired:
        raise ConfigError(
            "There is nothing to train on: give --data.root (well-lit photographs) or "
            "--data.paired (pairs)."
        )
    if need_pairs and not data.paired:
        raise ConfigError(
            "The troublemaker learns from pairs: give --data.paired, or --dimming camera, which "
            "needs photographs only."
        )
    store = PhotoStore(data.cache_gb, data.longest)
    notes: list[str] = []
    pairs: list[Pair] = []
    for root in data.paired:
        found, more = find_pairs(root)
        if not found:
            raise ConfigError(
                f"--data.paired {root}: no pairs there (folders like low/ and high/, Low/ and "
                "Normal/, input/ and target/, or SICE's Label/)."
            )
        pairs += found
        notes += more
    if pairs:
        pairs, problems = readable_pairs(pairs, store)
        notes += [f"left out: {problem}" for problem in problems]
    held = _held_back(len(pairs), data.val_fraction, seed) if pairs else set()
    split = {
        "train": [p for i, p in enumerate(pairs) if i not in held],
        "val": [p for i, p in enumerate(pairs) if i in held],
    }
    if data.root:
        train, val = split_photos(data.root, data.val, data.val_fraction, seed)
        photos = {}
        if not train:
            raise ConfigError("--data.val names all of --data.root: nothing is left to train on.")
        for name, paths in (("train", train), ("val", val)):
            photos[name], problems = readable(paths, store)
            notes += [f"left out: {problem}" for problem in problems]
    else:
        photos = {name: sorted({p.high for p in part}) for name, part in split.items()}
    return Material(photos, split, store, notes)


def load_stage(path: str | Path, stage: str) -> UGDC:
    """Load one network from a stage's checkpoint, a pair, or the authors' file; frozen.

    Raises:
        CheckpointError: not a UGDC, or one that does not fit.
    """
    path = Path(path)
    state, header = read_state_dict(path)
    inner = network_part(from_official(state), _PART[stage])
    arguments: dict[str, Any] = {}
    if "crossband" in header:
        arguments = dict(load_checkpoint(path).config["model"]["arguments"])
        arguments.pop("enhancer_stem", None)
    arguments["stem"] = stem_of(inner, str(path))
    network = UGDC(**arguments)
    load_state(network, inner, path)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def save_final(folder: RunFolder, trained: dict[str, UGDC], describe: dict[str, Any]) -> None:
    """Write the checkpoint of the run: the pair, or the last stage alone."""
    predictor, enhancer = trained.get("predictor"), trained.get("enhancer")
    if predictor is None:  # the troublemaker alone
        network = trained["troublemaker"]
        arguments = network_arguments(network)
        facts = {"task": "dimming", "model": {"name": "ugdc", "arguments": arguments}}
        save_checkpoint(folder.best, network.state_dict(), facts | describe)
        return
    arguments = network_arguments(predictor)
    arguments["enhancer_stem"] = network_arguments(enhancer)["stem"] if enhancer else 0
    pair = TML(**arguments)
    pair.pm.load_state_dict(predictor.state_dict())
    if enhancer is not None and pair.em is not None:
        pair.em.load_state_dict(enhancer.state_dict())
    facts = {"task": "enhancement", "model": {"name": "tml", "arguments": arguments}}
    save_checkpoint(folder.best, pair.state_dict(), facts | describe)


def network_arguments(network: UGDC) -> dict[str, Any]:
    """Return the constructor arguments that a checkpoint stores."""
    return {
        "height": network.height,
        "width": network.width,
        "stem": network.outc.conv.in_channels,
        "resize_patch_grid": network.any_size,
    }


def _train_stage(
    config: TrainConfig,
    stage: str,
    size: tuple[int, int],
    material: Material,
    trained: dict[str, UGDC],
    trainer: TrainerConfig,
    folder: RunFolder,
) -> Any:
    task, prepare = _task(config, stage, size, trained)
    train_set, val_set = _data_sets(config, stage, size, material)
    data = Data(train_set, Prepared(val_set, prepare), config.loader, config.seed)
    description = {
        "task": f"{stage} stage",
        "stage": stage,
        "model": {"name": "ugdc", "arguments": network_arguments(task.model)},
    }
    resume = folder.last.is_file()
    return fit(task, data, folder, trainer, config, describe=lambda: description, resume=resume)


def _task(
    config: TrainConfig, stage: str, size: tuple[int, int], trained: dict[str, UGDC]
) -> tuple[RestorationTask, Prepare]:
    stem = {
        "troublemaker": config.troublemaker_stem,
        "predictor": config.stem,
        "enhancer": config.enhancer_stem,
    }[stage]
    torch.manual_seed(config.seed)
    network = UGDC(
        *size,
        stem,
        drop_path=config.drop_path,
        resize_patch_grid=config.resize_patch_grid,
    ).to(memory_format=torch.channels_last)
    darken = Darken(config.dimming, config.camera, trained.get("troublemaker"))
    prepare = Prepare(stage, darken, trained.get("predictor"))
    task = RestorationTask(
        network,
        config.optimizer,
        config.schedule,
        compile=config.trainer.compile,
        augment=prepare,
        residual=stage == "enhancer",
    )
    return task, prepare


def _data_sets(
    config: TrainConfig, stage: str, size: tuple[int, int], material: Material
) -> tuple[Photos, Photos]:
    data = config.data
    kind: type[Photos] = Photos
    parts: dict[str, Any] = material.photos
    # A camera darkens each validation photograph in several ways; a network in one.
    draws = 1 if config.dimming == "troublemaker" or stage == "troublemaker" else _DRAWS
    if stage == "troublemaker":
        kind, parts = Pairs, material.pairs
    train = kind(
        parts["train"],
        size,
        material.store,
        random=True,
        seed=config.seed,
        repeats=data.repeats,
        smallest=data.smallest,
        recolour=data.recolour,
    )
    return train, kind(parts["val"], size, material.store, random=False, repeats=draws)


class Prepared(Dataset[dict[str, Tensor]]):
    """Validation items as a stage sees them, each always darkened in the same way."""

    def __init__(self, items: Photos, prepare: Prepare) -> None:
        """Keep the parts."""
        self.items, self.prepare = items, prepare

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one item."""
        batch = {name: value[None] for name, value in self.items[index].items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_VALIDATION_SEED + index)
            return {name: value[0] for name, value in self.prepare(batch).items()}


def validation_images(
    config: TrainConfig, material: Material, trained: dict[str, UGDC]
) -> list[tuple[Tensor, Tensor]]:
    """Return the validation photographs darkened, and as they were: (3, H, W) in [0, 1]."""
    size = _size(config)
    darken = Darken(config.dimming, config.camera, trained.get("troublemaker"))
    items = Photos(material.photos["val"], size, material.store, random=False)
    prepared = Prepared(items, Prepare("predictor", darken, None))
    images = []
    for index in range(len(prepared)):
        dark = denormalise(prepared[index]["image"][None])[0].clamp(0, 1)
        images.append(((dark * 255).round() / 255, items[index]["target"]))
    return images


def darkest_light(config: TrainConfig, material: Material, trained: dict[str, UGDC]) -> float:
    """Return the mean linear light that a tenth of the darkened training photographs stay below.

    Photographs that are darker still are lifted to it before the network sees them.
    """
    items = Photos(material.photos["train"], _size(config), material.store, random=False)
    darken = Darken(config.dimming, config.camera, trained.get("troublemaker"))
    step = -(-len(items) // _LIGHT_PHOTOS)
    levels = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_VALIDATION_SEED)
        for index in range(0, len(items), step):
            for _ in range(_DRAWS):
                dark = denormalise(darken(items[index]["target"][None])).clamp(0, 1)
                levels.append(float(to_linear(dark).mean()))
    return float(torch.tensor(levels).quantile(0.1))


def _try_one_batch(
    config: TrainConfig,
    stage: str,
    size: tuple[int, int],
    material: Material,
    trained: dict[str, UGDC],
) -> None:
    needs = {"enhancer": "predictor", "predictor": "troublemaker"}.get(stage)
    if needs == "troublemaker" and config.dimming == "camera":
        needs = None
    if needs and needs not in trained:  # will be there when this stage starts
        return
    task, prepare = _task(config, stage, size, trained)
    train_set, _ = _data_sets(config, stage, size, material)
    item = prepare({name: value[None] for name, value in train_set[0].items()})
    with torch.no_grad():
        task.eval().loss(item)


def _stages(config: TrainConfig) -> list[str]:
    if config.stage != "all":
        return [config.stage]
    skip = config.dimming == "camera" or config.troublemaker
    stages = [s for s in STAGES if not (s == "troublemaker" and skip)]
    if config.enhancer_stem == 0:
        stages.remove("enhancer")
    return stages


def _given(config: TrainConfig, stages: list[str]) -> dict[str, UGDC]:
    """Load earlier stages' networks that are not trained in this run.

    Raises:
        ConfigError: one is needed and not given.
    """
    given = {}
    for stage, path in (("troublemaker", config.troublemaker), ("predictor", config.predictor)):
        if path:
            given[stage] = load_stage(path, stage)
    later = [s for s in stages if s != "troublemaker"]
    if later and config.dimming != "camera":
        _need("troublemaker", given, stages, "or --dimming camera, which needs none")
    if "enhancer" in stages:
        _need("predictor", given, stages, "the weights of --stage predictor")
    return given


def _need(stage: str, given: dict[str, UGDC], stages: list[str], remedy: str) -> None:
    if stage not in given and stage not in stages:
        raise ConfigError(f"This stage needs the {stage}: give --{stage} FILE ({remedy}).")


def _trainer(config: TrainConfig, stage: str) -> TrainerConfig:
    known = {f.name for f in fields(TrainerConfig)}
    for name, settings in config.stages.items():
        if name not in STAGES:
            hint = did_you_mean(name, STAGES) or f" There are: {', '.join(STAGES)}."
            raise ConfigError(f"--stages has no stage {name!r}.{hint}")
        for key in settings:
            if key not in known:
                raise ConfigError(
                    f"--stages {name}: trainer has no option {key!r}.{did_you_mean(key, known)}"
                )
    return replace(config.trainer, **config.stages.get(stage, {}))


def _size(config: TrainConfig) -> tuple[int, int]:
    if len(config.size) not in (1, 2):
        raise ConfigError(f"--size {config.size}: give height and width.")
    return config.size[0], config.size[-1]


def _held_back(count: int, fraction: float, seed: int) -> set[int]:
    held = max(1, round(fraction * count))
    if not 0 < fraction < 1 or held >= count:
        raise ConfigError(
            f"--data.val_fraction {fraction:g} of {count} pair(s) leaves none to train or none to "
            "validate on."
        )
    generator = torch.Generator().manual_seed(seed)
    return set(torch.randperm(count, generator=generator)[:held].tolist())


def _description(
    config: TrainConfig, material: Material, folder: RunFolder, stages: list[str]
) -> dict[str, Any]:
    scenes = sorted({*material.photos["train"], *(p.high for p in material.pairs["train"])})
    return {
        "stages": {s: load_checkpoint(folder.stage(s).best).config["training"] for s in stages},
        "protocol": {
            "photographs": {name: len(paths) for name, paths in material.photos.items()},
            "pairs": {name: len(pairs) for name, pairs in material.pairs.items()},
            "validation": sorted(p.name for p in material.photos["val"]),
            "dimming": config.dimming,
            "camera": None
            if config.dimming == "troublemaker"
            else {"name": config.camera, **asdict(get_camera(config.camera))},
            "size": list(_size(config)),
            "seed": config.seed,
            "machine": machine(),
            # So that `evaluate` can tell when a test scene was trained on.
            "fingerprints": [fingerprint(material.store.read(path)) for path in scenes],
        },
    }


def _summary(config: TrainConfig, folder: RunFolder, material: Material, stages: list[str]) -> str:
    size = _size(config)
    photos, pairs = material.photos, material.pairs
    lines = [
        f"stages: {', '.join(stages)}; {size[0]} x {size[1]}, seed {config.seed}",
        f"photographs: {len(photos['train'])} to train on, {len(photos['val'])} to validate on",
        f"pairs: {len(pairs['train'])} to train on, {len(pairs['val'])} to validate on",
        f"darkened by: {config.dimming}",
        *(f"note: {note}" for note in material.notes),
        f"run folder: {folder.path}",
    ]
    return "\n".join(lines)
