"""Speed of Attar as ratios, each measured in one process against a named other way of doing the same work."""
