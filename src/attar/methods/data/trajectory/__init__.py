"""The kit of trajectory matching: experts, segments, the matching gradient, and what a method starts from."""
