"""What both stages train with: losses, schedules, parameter groups, metrics, EMA. Knows no loop or file."""
