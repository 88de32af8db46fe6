"""Time one subject: settings, clocks, samples, summaries."""
