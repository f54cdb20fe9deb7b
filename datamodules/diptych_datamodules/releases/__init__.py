"""What public releases have in common: tables, splits, counts, checks."""
