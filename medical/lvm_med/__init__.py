"""Backbones for medical images without labels: for groups with many scans and few annotations.

Nguyen et al., "LVM-Med: Learning Large-Scale Self-Supervised Vision Models for Medical Imaging via
Second-order Graph Matching", NeurIPS 2023, arXiv 2306.11925.
"""
