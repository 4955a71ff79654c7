"""The `regnet` command: one file per subcommand, each a thin shell over a public function.

It may import every room; only `regnet.bench.__main__` imports it.
"""
