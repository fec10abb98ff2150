"""UNIP: small ViTs for infrared segmentation, distilled from the attention of large ones.

For users with thermal frames and few masks. Zhang et al., ICLR 2025.
"""
