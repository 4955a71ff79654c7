"""Models by name: resolve a name, build the model, load its weights, and write it to files.

This package builds on `nn` and `weights`. Every package that runs or trains a model imports it.
"""
