"""Boxes of findings by Faster R-CNN of mmdet: `crossband medical train --task detection`."""
