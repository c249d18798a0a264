"""The page of a run: its template, style and scripts, and the data that they show.

``page`` fills the template; ``findings`` are the summary, ``panels`` the figures, ``facts`` the tables of facts and
neurons.
"""
