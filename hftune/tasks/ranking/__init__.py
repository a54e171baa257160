"""Ranking of images by quality, learnt from pairs."""
