"""Ranks, launcher, run directory and lease, stop flag, time account, logs: what every run stands on."""
