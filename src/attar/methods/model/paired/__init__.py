"""The kit of dual encoders: how pairs are shown, what a smaller one inherits of a larger one, and who teaches."""
