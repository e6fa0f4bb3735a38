"""Claims: the papers' statements as experiments, one file a system; the verdict is computed."""
