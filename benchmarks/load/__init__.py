"""What runs cost: events per second, waiting calls, steps, memory, against the floor and against others."""
