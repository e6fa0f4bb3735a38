"""The one trainer of students, and the evaluation protocols built on it."""
