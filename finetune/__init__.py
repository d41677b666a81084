"""Fine-tuning, evaluation and hand-over: the second half of the way. The only importer of accelerate."""
