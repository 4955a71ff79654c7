"""The ways to run a network, one file each behind one protocol, and the race between them.

Each imports its package when it is used; `bench`, `exporting` and the rooms above import them.
"""
