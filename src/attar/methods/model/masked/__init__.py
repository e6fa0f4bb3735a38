"""The kit of masked image modelling: which patches are hidden, what is to be guessed, and how it is trained."""
