"""A whole bench: subjects in fresh processes, in interleaved rounds."""
