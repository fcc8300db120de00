"""Pictures: sources, views, and the loader that ships them."""
