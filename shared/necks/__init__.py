"""From the maps of a plain ViT, all of one stride, to a pyramid."""

from __future__ import annotations

from crossband.shared.necks.ll_fpn import LLFPN
from crossband.shared.necks.necked import NeckedBackbone
from crossband.shared.necks.select_resize import SelectResize
from crossband.shared.necks.simple_fpn import SimpleFeaturePyramid

__all__ = ["LLFPN", "NeckedBackbone", "SelectResize", "SimpleFeaturePyramid"]
