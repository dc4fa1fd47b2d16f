"""What else promises a rate without a sweep."""
