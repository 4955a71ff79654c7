"""The RegNet library."""
