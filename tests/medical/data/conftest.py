from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

Files = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Files:
    """Write a text, or a small grey image whose pixels differ from name to name."""

    def write(name: str, text: str | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text, encoding="utf-8")
        else:
            value = sum(name.encode()) % 256
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def put_dicom(tmp_path: Path) -> Files:
    """Write a DICOM file of stored values; keywords are elements, None leaves one out."""

    def write(stored: np.ndarray, name: str = "a.dcm", **elements: object) -> Path:
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        header.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
        syntax = elements.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
        header.file_meta.TransferSyntaxUID = syntax
        header.SOPClassUID, header.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "2.25.1"
        header.PatientName, header.PatientID = "Secret^Person", "MRN4711"
        header.Modality = "DX"
        header.Rows, header.Columns = stored.shape[:2]
        header.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
        if stored.ndim == 3:
            header.PlanarConfiguration = 0
        bits = 8 * stored.dtype.itemsize
        header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
        header.PixelRepresentation = int(stored.dtype.kind == "i")
        header.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
        header.PixelData = stored.tobytes()
        for keyword, value in elements.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        path = tmp_path / name
        header.save_as(path, enforce_file_format=True)
        return path

    return write
