"""Tuning a pre-trained network with few parameters: linear probing, LoRA, PELA, DVPT."""
