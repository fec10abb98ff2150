"""Infrared images: segmentation, and pre-training for it."""
