"""A page on this machine alone, where an image is dropped and the model's guesses appear. Optional."""
