"""MLPerf LoadGen's scenarios over a session."""
