"""The training loop: optimizers, checkpoints, run folder, log, hardware switches, signals."""
