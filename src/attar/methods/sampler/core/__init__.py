"""What the methods of this family share: times, pairs of times, teachers, training, and the loops of their kinds."""
