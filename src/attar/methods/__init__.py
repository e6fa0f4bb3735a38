"""Methods: one file each, named by the ledger; nothing registers by being imported."""
