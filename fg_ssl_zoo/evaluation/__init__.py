"""Evaluation of backbones: protocols, tables, reports, measurements during training."""
