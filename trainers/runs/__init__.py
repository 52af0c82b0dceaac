"""What every long run shares: resuming, guarding its settings, recipes, processes, publishing and errors."""
