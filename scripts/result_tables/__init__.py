"""Results and schemas as Markdown: one function for each kind of table of ``scripts/tables.py``."""
