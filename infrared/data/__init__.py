"""Data sets of infrared images in the formats that people have."""
