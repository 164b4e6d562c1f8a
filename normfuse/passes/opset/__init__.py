"""From one opset to another: what changed per operator and version, as rules that decide and change nothing."""
