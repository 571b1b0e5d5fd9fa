"""Private and shared by all rooms: what many of them use and no user sees."""
