"""DVPT: dynamic visual prompt tuning of frozen transformers for medical images.

He, Wang, Wang, Li, Fu 2025, "DVPT: Dynamic Visual Prompt Tuning of Large Pre-trained Models for
Medical Image Analysis", Neural Networks 185, arXiv 2307.09787. Beside the MLP of each frozen block
stands a gated bottleneck, shared by neighbouring blocks, and a few prompts attend to the block's
features. Only these and a head are trained: a quarter to half a percent of the network.

`apply.py` prepares our ViTs and timm's Swin transformers; `clip.py`, `swin.py` and `segformer.py`
are the three released networks.
"""
