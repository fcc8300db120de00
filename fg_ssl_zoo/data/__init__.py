"""Images: sources, views, and the loader."""
