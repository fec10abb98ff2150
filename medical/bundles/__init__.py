"""Medical models as MONAI bundles: transforms, writing, and the shipped folders without weights.

A folder here holds the configurations of one recipe, as `crossband medical export --format
monai-bundle` writes them around a checkpoint.
"""
