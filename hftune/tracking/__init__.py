"""Run records and reports; imports no torch."""
