"""Small medical networks with random weights, and DICOM files with a name in their header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossband.medical import networks
from crossband.shared.checkpoints import save_checkpoint

FINDINGS = ["Bright", "Dark", "Nodule"]
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32}
SECRET = "Mueller_19500401"  # of the patient: in names of files and in headers


def save(path: Path, task: str, description: dict[str, Any], **facts: Any) -> Path:
    """Write a checkpoint as `crossband medical train` does, with random weights."""
    torch.manual_seed(0)
    model = networks.build(description)
    networks.tune(model, description)
    for name, parameter in model.named_parameters():  # a new head is too small to see anything
        if name.startswith("head."):
            torch.nn.init.normal_(parameter, std=0.5)
    config = {
        "task": f"medical {task}",
        "model": description,
        "input_size": [32, 32],
        "channels": 3,
        "value_range": [0, 255],
        "normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3},
        "reading": {"resize": 37, "window": []},
        "modality": "X-ray",
        "metrics": {"auroc": 0.9},
        "protocol": {"split": "patients", "pretrained": "/home/me/mae.safetensors"},
    }
    return save_checkpoint(path, model.state_dict(), config | facts)


def classifier(path: Path, **facts: Any) -> Path:
    description = {
        "name": "chest_mae_vit_tiny",
        "arguments": {**SMALL, "num_classes": 3, "global_pool": "avg", "drop_path_rate": 0.1},
    }
    given = {"classes": FINDINGS, "multilabel": True, "temperature": 1.7, "model": description}
    given |= facts
    return save(path, "classification", given.pop("model"), **given)


def write_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> None:
    """Write 12-bit values (H, W) as a DICOM file with names in its header."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName, data.PatientID = SECRET, SECRET
    data.Modality, data.SamplesPerPixel = "DX", 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = pixels.astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)
