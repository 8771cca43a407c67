"""What a sample leaves behind: results, run folders, cost, pictures."""
