"""What the report is made of: `runs` reads, `summary` counts, `charts` draws, `page` puts it together."""
