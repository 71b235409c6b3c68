"""From questions and stored tokens to answers and captions."""
