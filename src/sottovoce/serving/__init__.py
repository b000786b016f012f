"""A trained bundle in use: chat, export and push."""
