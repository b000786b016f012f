"""A trained bundle in use: chat and export."""
