"""Data sets of chest X-rays in the forms that people have them in."""
