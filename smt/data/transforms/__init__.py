"""Augmentation of training images, and what an evaluation does to its own."""
