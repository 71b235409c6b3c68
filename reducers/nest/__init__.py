"""`nest`: the order of a clip, its reducer, and cuts of stored tokens."""
