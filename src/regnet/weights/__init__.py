"""Published weights: which there are, and how they get into a model."""
