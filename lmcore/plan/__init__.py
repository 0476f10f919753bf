"""What a layout will need, before a run: memory, communication, time, energy, money."""
