"""Reading compressed video without decoding it: random-access points, references, and display order."""
