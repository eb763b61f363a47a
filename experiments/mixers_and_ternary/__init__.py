"""What ternary weights cost with each mixer; see README.md."""
