"""Weights of other implementations, renamed and reshaped tensor by tensor; nothing of theirs is imported."""
