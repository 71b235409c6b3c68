"""From decoded clips to visual tokens."""
