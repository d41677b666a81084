"""From any source to shards: list, plan, write in parallel, commit. Knows no training and no loader."""
