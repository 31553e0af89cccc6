"""What people look at: pictures and tables of a finished run. Reads results, never writes labels."""
