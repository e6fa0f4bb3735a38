"""Model distillation: objectives that train a student, one file each; see `attar.train.objective`."""
