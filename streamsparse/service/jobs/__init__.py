"""Jobs: their table, the queue over it, and the events they report."""
