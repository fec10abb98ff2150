"""Segmentation by boxes: SAM with its encoders frozen and the mask decoder trained (LVM-Med)."""
