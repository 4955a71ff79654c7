"""Files of the Hub and of other servers: fetched under names of our own, resumed, and verified.

It knows no weights and no images; whatever needs files from a network may import it.
"""
