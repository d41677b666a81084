"""DeepSpeed behind one narrow door: steps, and world-size-free fragments of its state. Knows no data."""
