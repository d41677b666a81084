"""SLURM: plan, submit, survive, watch. Runs on a login node and beside a job; imports no torch."""
