"""Gives every Python of a command the host's CUDA device. Found on PYTHONPATH."""

from __future__ import annotations

import os

if "HOST_GPU" in os.environ:
    from device import install

    install(os.environ["HOST_GPU"])
