"""A trained bundle in use: chat, endpoint, export and push."""
