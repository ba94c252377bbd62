"""`wane bench`: measurements of wane itself."""
