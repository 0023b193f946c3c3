"""The report: `runs` reads, `metrics` says what numbers mean, `settings` groups runs, `tables` shows them.

`formats` writes Markdown, LaTeX and CSV; `views` and `charts` draw; `page` puts everything into one HTML file.
`drawing` makes the PNG files that experiments leave.
"""
