"""The ridge core: what KIP, FRePo and KRR-ST share."""
