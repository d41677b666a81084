"""Memory, speed and days before the queue: arithmetic over a model's operations and a machine's profile."""
