"""Operators that choose the fastest of several equal implementations."""
