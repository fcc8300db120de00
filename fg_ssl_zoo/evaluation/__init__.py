"""Protocols that tell how good a backbone is."""
