"""The page of a grid: tables, figures, case study."""
