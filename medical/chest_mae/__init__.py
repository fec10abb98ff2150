"""Chest X-rays read by masked autoencoders (Xiao et al. 2023, arXiv 2210.12843)."""
