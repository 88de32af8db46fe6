"""What the machine can do, and what it does: peaks, roofline, power, clocks, load."""
