"""Models of about one million parameters."""
