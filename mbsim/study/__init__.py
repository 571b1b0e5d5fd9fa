"""Studies: theory and simulation side by side, claims with verdicts, figures and the report."""
