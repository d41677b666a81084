"""What this installation can do and what it would miss. Packages declare their checks as entry points."""
