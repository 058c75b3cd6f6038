"""Puzzles being solved, captured and looked at: one file format, and the reports, charts and pages made of it."""
