"""The configurations of a bundle, in MONAI's language, from what a checkpoint says of itself.

`facts` holds task, network, classes, multilabel, size, channels, value_range, mean, std,
temperature, and how files are read (`reading`, see `crossband.shared.bundles.reading`).
"""

from __future__ import annotations

from typing import Any

from crossband.shared.bundles.reading import Reading

Facts = dict[str, Any]
_IMPORTS = ["$import glob", "$import os"]
# Batch norms fail on a last batch of one image.
_LONE = "$len(@train::dataset) > @batch_size and len(@train::dataset) % @batch_size == 1"
_TEMPERED = "$lambda x: x / torch.tensor(@temperature, device=x.device)"


def inference_config(facts: Facts) -> dict[str, Any]:
    """Return inference.json: every image of `dataset_dir`, results in `output_dir`."""
    reading: Reading = facts["reading"]
    segments = facts["task"] == "segmentation"
    handlers = [_loader("@ckpt_path")]
    if segments:
        steps = [
            *([] if reading.restores_logits else [_activation(facts)]),
            *reading.restore,
            {"_target_": "AsDiscreted", "keys": "pred", **_decision(facts)},
            *reading.before_saving,
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_ext": "@output_ext",
                "output_dtype": "$np.uint8",
                "output_postfix": "mask",
                "resample": False,
                "separate_folder": False,
            },
        ]
    else:
        tempered = {"_target_": "Lambdad", "keys": "pred", "func": _TEMPERED, "track_meta": True}
        steps = [tempered, _activation(facts)]
        handlers.append(
            {
                "_target_": "ClassificationSaver",
                "batch_transform": "$lambda x: [item['image'].meta for item in x]",
                "output_transform": "$monai.handlers.from_engine(['pred'])",
                "saver": {
                    "_target_": "crossband.shared.bundles.transforms.PredictionTable",
                    "classes": facts["classes"],
                    "output_dir": "@output_dir",
                },
            }
        )
    config: dict[str, Any] = {
        **_head(facts),
        **reading.settings,
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/out'",
        "datalist": reading.listing,
    }
    config |= (
        {"output_ext": reading.output_ext} if segments else {"temperature": facts["temperature"]}
    )
    return config | {
        "preprocessing": {"_target_": "Compose", "transforms": reading.image},
        "dataset": {
            "_target_": "Dataset",
            "data": "@datalist",
            "transform": "@preprocessing",
        },
        "dataloader": _dataloader("@dataset", 1, shuffle=False),
        "inferer": reading.inferer,
        "postprocessing": {"_target_": "Compose", "transforms": steps},
        "handlers": handlers,
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$monai.utils.set_determinism(seed=0)"],
        "run": ["$@evaluator.run()"],
    }


def train_config(facts: Facts) -> dict[str, Any]:
    """Return train.json: fine-tunes on `dataset_dir`/dataset.json from `ckpt_path`."""
    segments = facts["task"] == "segmentation"
    reading: Reading = facts["reading"]
    metric = "val_mean_dice" if segments else "val_auroc"
    return {
        **_head(facts),
        **reading.settings,
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "ckpt_dir": "$@bundle_root + '/models'",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "data_list_file_path": "$@dataset_dir + '/dataset.json'",
        "val_interval": 1,
        "epochs": 10,
        "batch_size": 4,
        "learning_rate": 1e-4,
        "loss": _loss(facts),
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": "$@network.parameters()",
            "lr": "@learning_rate",
        },
        "train": {
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [*reading.training, *_label(facts)],
            },
            "dataset": _listed("training", "@train::preprocessing", segments),
            "dataloader": {
                **_dataloader("@train::dataset", "@batch_size", shuffle=True),
                "drop_last": _LONE,
            },
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": {"_target_": "Compose", "transforms": _scored(facts)},
            "handlers": [
                _loader("@ckpt_path"),
                {
                    "_target_": "ValidationHandler",
                    "validator": "@validate::evaluator",
                    "epoch_level": True,
                    "interval": "@val_interval",
                },
                {
                    "_target_": "StatsHandler",
                    "tag_name": "train_loss",
                    "output_transform": "$monai.handlers.from_engine(['loss'], first=True)",
                },
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@epochs",
                "device": "@device",
                "train_data_loader": "@train::dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train::inferer",
                "postprocessing": "@train::postprocessing",
                "train_handlers": "@train::handlers",
            },
        },
        "validate": {
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [*reading.validation, *_label(facts)],
            },
            "dataset": _listed("validation", "@validate::preprocessing", segments),
            "dataloader": _dataloader("@validate::dataset", 1, shuffle=False),
            "inferer": reading.inferer,
            "postprocessing": {"_target_": "Compose", "transforms": _scored(facts)},
            "key_metric": {metric: _metric(facts)},
            "handlers": [
                {"_target_": "StatsHandler", "iteration_log": False},
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "best.pt",
                },
            ],
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate::dataloader",
                "network": "@network",
                "inferer": "@validate::inferer",
                "postprocessing": "@validate::postprocessing",
                "key_val_metric": "@validate::key_metric",
                "val_handlers": "@validate::handlers",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=0)"],
        "run": ["$@train::trainer.run()"],
    }


def evaluate_config(facts: Facts) -> dict[str, Any]:
    """Return evaluate.json, to be read after train.json: scores of `ckpt_path` on validation."""
    metric = next(iter(train_config(facts)["validate"]["key_metric"]))
    saver: dict[str, Any] = {
        "_target_": "MetricsSaver",
        "save_dir": "@output_dir",
        "metrics": [metric],
        "batch_transform": "$lambda x: [item['image'].meta for item in x]",
        "summary_ops": "*",
    }
    if metric == "val_mean_dice":  # the only one with a value for each image
        saver["metric_details"] = [metric]
    return {
        "validate::handlers": [
            _loader("@ckpt_path"),
            {"_target_": "StatsHandler", "iteration_log": False},
            saver,
        ],
        "run": ["$@validate::evaluator.run()"],
    }


def _head(facts: Facts) -> dict[str, Any]:
    return {
        "imports": _IMPORTS,
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": facts["network"],
        "network": "$@network_def.to(@device)",
    }


def _label(facts: Facts) -> list[dict[str, Any]]:
    if facts["task"] == "segmentation":
        return []
    kind = "$torch.float32" if facts["multilabel"] else "$torch.int64"
    return [{"_target_": "ToTensord", "keys": "label", "dtype": kind, "track_meta": False}]


def _scored(facts: Facts) -> list[dict[str, Any]]:
    """Bring predictions and labels to what the metric compares."""
    classes = len(facts["classes"])
    if facts["task"] == "classification":
        return [_activation(facts)]
    return [
        {
            "_target_": "AsDiscreted",
            "keys": ["pred", "label"],
            "argmax": [True, False],
            "to_onehot": classes,
        }
    ]


def _metric(facts: Facts) -> dict[str, Any]:
    if facts["task"] == "segmentation":
        return {
            "_target_": "MeanDice",
            "include_background": False,
            "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
        }
    return {
        "_target_": "crossband.shared.bundles.transforms.MeanAUROC",
        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
    }


def _loss(facts: Facts) -> dict[str, Any]:
    if facts["task"] == "segmentation":
        return {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
    if facts["multilabel"]:
        return {"_target_": "crossband.shared.bundles.transforms.KnownLabelsLoss"}
    return {"_target_": "torch.nn.CrossEntropyLoss"}


def _activation(facts: Facts) -> dict[str, Any]:
    kind = "sigmoid" if facts["multilabel"] else "softmax"
    return {"_target_": "Activationsd", "keys": "pred", kind: True}


def _decision(facts: Facts) -> dict[str, Any]:
    return {"threshold": 0.5} if facts["multilabel"] else {"argmax": True}


def _listed(part: str, transform: str, segments: bool) -> dict[str, Any]:
    return {
        "_target_": "Dataset",
        "data": "$monai.data.load_decathlon_datalist(@data_list_file_path, is_segmentation="
        f"{segments}, data_list_key='{part}', base_dir=@dataset_dir)",
        "transform": transform,
    }


def _dataloader(dataset: str, batch: int | str, *, shuffle: bool) -> dict[str, Any]:
    return {
        "_target_": "DataLoader",
        "dataset": dataset,
        "batch_size": batch,
        "shuffle": shuffle,
        "num_workers": 0,
    }


def _loader(path: str) -> dict[str, Any]:
    return {"_target_": "CheckpointLoader", "load_path": path, "load_dict": {"model": "@network"}}
