"""Backbones and their timm names."""
