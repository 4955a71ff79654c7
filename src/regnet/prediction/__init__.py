"""Predictions: for a few images as objects, or for a collection as one Parquet file."""
