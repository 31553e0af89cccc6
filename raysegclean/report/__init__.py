"""What people look at: pictures of a finished run. Reads results, never writes labels."""
