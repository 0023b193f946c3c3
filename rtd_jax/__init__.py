"""Composed image retrieval with pseudo tokens: φ networks, RTD's training of the text encoder, exact search."""
