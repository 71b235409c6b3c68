"""Files that no decoder was meant to see: made by the thousand, pushed through the real decode stage, and counted."""
