"""What a run costs before it is started: parameters, memory by part, disk; nothing here holds a weight."""
