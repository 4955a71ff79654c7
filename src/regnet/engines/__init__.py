"""The engines that run networks, one file each behind one protocol, and the race between them.

An engine imports its optional package only when it is used. `bench`, `exporting` and the rooms
above import this one.
"""
