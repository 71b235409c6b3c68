"""The parts of a Video-LLaVA checkpoint, and what is needed to run them."""
