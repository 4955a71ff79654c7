"""Predictions: for a few images as objects, for a collection as one Parquet file."""
