"""Files: read as regular files, written atomically, found where users keep them."""
