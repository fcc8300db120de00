"""From a backbone to a published folder."""
