"""Methods that make a data set small."""
