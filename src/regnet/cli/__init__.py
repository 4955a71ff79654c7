"""The `regnet` command: thin shells over public functions."""
