"""Training: recipes as data, runs that can be repeated, checkpoints that go on exactly."""
