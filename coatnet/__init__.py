"""What pretraining and fine-tuning share: config, model, checkpoints, the runtime and the command line.

Importing this package imports nothing heavy: `coatnet --help` and the login-node tools start without torch.
"""

__version__ = "0.1.0"
