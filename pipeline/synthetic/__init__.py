"""A generated world of moving shapes, its questions, and the small Video-LLaVA that was trained on it."""
