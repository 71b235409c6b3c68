"""What methods share: orders, budgets, layouts, attention."""
