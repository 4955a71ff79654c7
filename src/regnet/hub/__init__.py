"""Download files from the Hub and from other servers, resume downloads, and verify the files.

This package knows nothing of weights or images; every package that needs files from a network may
import it.
"""
