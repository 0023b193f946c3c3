"""The report: `runs` and `records` read, `metrics` gives numbers a meaning, `settings` groups runs, `tables` shows them.

`formats` writes tables as Markdown, LaTeX and CSV; `views` and `charts` draw; `page` puts everything into one HTML file.
"""
