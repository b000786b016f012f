"""Memory, time and file sizes of a recipe before it runs."""
