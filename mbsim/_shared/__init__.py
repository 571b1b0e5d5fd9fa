"""Private and shared by all rooms: extras, files, processes, progress, records, seeds, tables, values."""
