"""Find a network for a device: choose a published one, or search for a new one.

This package has the limits, the measurements on the device, the latency model that is fitted to
them, and the search. Nothing here trains. It may import `bench`, `engines`, `spaces` and the
packages below; `studies` and the explorer build on it. Its public names are `regnet.choose`,
`regnet.search`, `regnet.learn_latency` and `regnet.Limits`.
"""
