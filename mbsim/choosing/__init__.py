"""Choosing: methods compared, step sizes tuned, the best micro-batch size."""
