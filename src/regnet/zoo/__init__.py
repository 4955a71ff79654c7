"""Models by name: from a name to a source, to a model with weights, and back to files.

It joins `nn` and `weights`; every room that runs or trains a model imports it.
"""
