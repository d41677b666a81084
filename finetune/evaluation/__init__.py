"""What a model is worth: predictions once per sample, every figure computed from them."""
