"""Segmentation by prompts: points, boxes and rough masks (Segment Anything, Kirillov et al. 2023).

The image encoder is `crossband.shared.backbones.sam`. Keys are the authors'.
"""

from crossband.shared.promptable.decoder import MaskDecoder
from crossband.shared.promptable.model import SAM
from crossband.shared.promptable.prompts import PromptEncoder, RandomPositions
from crossband.shared.promptable.transformer import TwoWayTransformer

__all__ = ["SAM", "MaskDecoder", "PromptEncoder", "RandomPositions", "TwoWayTransformer"]
