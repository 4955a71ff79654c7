"""The engines that run networks, one file each behind one protocol, and the race between them.

An engine imports its optional package only when it is used. `bench`, `exporting` and the packages
above import this one.
"""
