"""The configurations of a bundle, in MONAI's language, from what a checkpoint says of itself.

`facts` holds task, model, classes, multilabel, size, channels, value_range, mean, std.
"""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]
_IMPORTS = ["$import glob", "$import os"]
# Files of one grey, two (grey and alpha), three or four channels, to what the network takes.
_TO_ONE = "$lambda x: x[:1] if len(x) < 3 else x[:3].mean(0, keepdim=True)"
_TO_THREE = "$lambda x: x[:3] if len(x) >= 3 else x[:1].repeat(3, 1, 1)"


def inference_config(facts: Facts) -> dict[str, Any]:
    """Return inference.json: every image of `dataset_dir`, results in `output_dir`."""
    segments = facts["task"] == "segmentation"
    steps: list[dict[str, Any]] = [_activation(facts)]
    handlers = [_loader("@ckpt_path")]
    if segments:
        steps += [
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", **_decision(facts)},
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
        handlers.append(
            {
                "_target_": "ClassificationSaver",
                "output_dir": "@output_dir",
                "filename": "predictions.csv",
                "batch_transform": "$lambda x: [item['image'].meta for item in x]",
                "output_transform": "$monai.handlers.from_engine(['pred'])",
            }
        )
    config: dict[str, Any] = {
        **_head(facts),
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/out'",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.*')))",
    }
    if segments:
        config["output_ext"] = ".png"
    return config | {
        "preprocessing": {"_target_": "Compose", "transforms": _reading(facts, ["image"])},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': name} for name in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": _dataloader("@dataset", 1, shuffle=False),
        "inferer": {"_target_": "SimpleInferer"},
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
    keys = ["image", "label"] if segments else ["image"]
    flip = {"_target_": "RandFlipd", "keys": keys, "prob": 0.5, "spatial_axis": 1}
    metric = "val_mean_dice" if segments else "val_auc"
    return {
        **_head(facts),
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
                "transforms": [*_reading(facts, keys), flip, *_label(facts)],
            },
            "dataset": _listed("training", "@train::preprocessing", segments),
            "dataloader": _dataloader("@train::dataset", "@batch_size", shuffle=True),
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
                "transforms": [*_reading(facts, keys), *_label(facts)],
            },
            "dataset": _listed("validation", "@validate::preprocessing", segments),
            "dataloader": _dataloader("@validate::dataset", 1, shuffle=False),
            "inferer": {"_target_": "SimpleInferer"},
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
        "network_def": {"_target_": "crossband.shared.create_model", **facts["model"]},
        "network": "$@network_def.to(@device)",
    }


def _reading(facts: Facts, keys: list[str]) -> list[dict[str, Any]]:
    low, high = facts["value_range"]
    steps = [
        {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True},
        # MONAI reads images as (C, W, H).
        {"_target_": "Transposed", "keys": keys, "indices": [0, 2, 1]},
    ]
    if facts["channels"] in (1, 3):
        to = _TO_ONE if facts["channels"] == 1 else _TO_THREE
        steps.append({"_target_": "Lambdad", "keys": "image", "func": to, "track_meta": True})
    modes = [{"image": "bilinear", "label": "nearest"}[key] for key in keys]
    return [
        *steps,
        {"_target_": "Resized", "keys": keys, "spatial_size": facts["size"], "mode": modes},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
        },
        {
            "_target_": "NormalizeIntensityd",
            "keys": "image",
            "subtrahend": facts["mean"],
            "divisor": facts["std"],
            "channel_wise": True,
        },
    ]


def _label(facts: Facts) -> list[dict[str, Any]]:
    if facts["task"] == "segmentation":
        first = "$lambda x: x[:1]"
        return [{"_target_": "Lambdad", "keys": "label", "func": first, "track_meta": True}]
    kind = "$torch.float32" if facts["multilabel"] else "$torch.int64"
    return [{"_target_": "ToTensord", "keys": "label", "dtype": kind, "track_meta": False}]


def _scored(facts: Facts) -> list[dict[str, Any]]:
    """Bring predictions and labels to what the metric compares."""
    classes = len(facts["classes"])
    if facts["task"] == "classification":
        one_hot = {"_target_": "AsDiscreted", "keys": "label", "to_onehot": classes}
        return [_activation(facts), *([] if facts["multilabel"] else [one_hot])]
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
        "_target_": "ROCAUC",
        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
    }


def _loss(facts: Facts) -> dict[str, Any]:
    if facts["task"] == "segmentation":
        return {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
    return {
        "_target_": "torch.nn.BCEWithLogitsLoss"
        if facts["multilabel"]
        else "torch.nn.CrossEntropyLoss"
    }


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
