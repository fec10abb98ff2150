"""MONAI bundles: folders of weights and configurations that MONAI and crossband can run."""
