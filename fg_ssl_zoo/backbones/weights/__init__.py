"""Weights on disk and on the Hub: published folders, where a name is found, files of others."""
