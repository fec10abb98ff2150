"""Readers and writers that several domains use."""
