"""Chest X-rays read by masked autoencoders: for groups with radiographs, few labels and one GPU.

Xiao, Bai, Yuille, Zhou, "Delving into Masked Autoencoders for Multi-Label Thorax Disease
Classification", WACV 2023, arXiv 2210.12843.
"""
