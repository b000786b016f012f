"""A trained bundle in use: chat, endpoint and export."""
