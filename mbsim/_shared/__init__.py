"""Private and shared by all rooms: files, processes, progress, records, seeds, tables, values."""
