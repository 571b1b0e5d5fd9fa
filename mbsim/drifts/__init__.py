"""Drifts: what one step does, exactly, and what follows: floors, certificates, step sizes."""
