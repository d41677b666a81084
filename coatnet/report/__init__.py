"""A run directory as one page. Reads files only; imports no torch, so that a login node can make it."""
