"""The report: `runs` reads, `metrics` says what numbers mean, `settings` groups runs, `tables` shows them.

`formats` writes Markdown, LaTeX and CSV; `views` and `charts` draw; `page` puts everything into one HTML file. The PNG
files that experiments leave are drawn on the canvas of `drawing`.
"""
