"""DeepSpeed behind one narrow door: steps, world-size-free fragments of its state. Knows no data and no file."""
