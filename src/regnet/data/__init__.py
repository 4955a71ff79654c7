"""Images: opened, preprocessed, labelled in sets, loaded many at once, and augmented.

It knows nothing of models; every room above may import it.
"""
