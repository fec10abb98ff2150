"""Photographs, pairs of photographs, and a camera that makes one from the other."""
