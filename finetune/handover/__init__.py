"""Handing a model on in the form others read, with proof that it gives the same answers; taking one over."""
