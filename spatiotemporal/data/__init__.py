"""Gridded fields over time: reading, splitting, normalising, checking."""
