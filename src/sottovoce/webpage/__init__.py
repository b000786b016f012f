"""A page in the browser on which a bundle is spoken to and looked into."""
