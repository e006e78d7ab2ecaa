"""Pretrained models and data sets that are packaged on the Python package index, and how they are downloaded."""
