"""Decoupled distillation: train a teacher with batch norm, turn it into images, let it label them."""
