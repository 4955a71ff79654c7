"""Ways to run a network: one file each, one protocol, and `optimize`, which chooses by timing."""
