"""What the data commands compute: facts, checks, proofs, measurements. Each returns plain values to print."""
