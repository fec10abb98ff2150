"""PredFormer: forecasting of weather, traffic and video by gated transformers alone.

For users with gridded fields over time. Tang et al. 2024, arXiv 2410.04733.
"""
