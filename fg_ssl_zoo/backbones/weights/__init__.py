"""Weights on disk and on the Hub: published folders, search by name, files of other projects."""
