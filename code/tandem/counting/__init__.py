"""Work, bytes and seconds by counting, without running anything."""
