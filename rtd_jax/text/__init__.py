"""Captions, triplets, keywords, and the texts that queries are composed of."""
