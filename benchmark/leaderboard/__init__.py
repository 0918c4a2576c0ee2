"""The leaderboard: defenses over any set of results, ranked by ASR and by utility lost; as Markdown, figure and HTML.

Defenses are compared on the same cases alone. A case is all of a cell's settings but its defense and its seed: the
victim, the rows for removal, the measurements.
"""
