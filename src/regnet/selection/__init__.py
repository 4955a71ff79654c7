"""A network for a device: limits, measuring on the device, a model of its latency, and the search.

Nothing here trains. It may import `bench`, `engines`, `spaces` and the rooms below; `studies` and
the explorer build on it. `regnet.search` and `regnet.Limits` are its public names.
"""
