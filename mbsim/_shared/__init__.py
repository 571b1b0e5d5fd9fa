"""Private and shared by all rooms: files, progress, records, seeds, tables, values."""
