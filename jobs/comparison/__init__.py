"""`promptmill compare`: what changed between two jobs, and how well each answers its references."""
