"""Checkpoints that exist wholly or not at all, are verified when read, and open at any world size."""
