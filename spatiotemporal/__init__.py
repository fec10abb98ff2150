"""Forecasting of gridded fields: weather, traffic, video."""
