"""Export, check, release and upload of a backbone; listing and download of models."""
