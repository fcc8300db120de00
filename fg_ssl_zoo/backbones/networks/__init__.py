"""Architectures that stock timm lacks, registered with timm under `fgssl_*` names."""
