"""crossband: applied computer vision beyond everyday photos."""

__version__ = "0.1.0"
