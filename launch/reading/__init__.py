"""The readers of what users bring: one for each form of input, shared by all packages.

    paths      settings and names that stand for files: `~`, empty values, names that leave their folder
    text       UTF-8 text and its lines
    tables     CSV (strict quoting) and TSV (no quoting) with a header
    jsons      JSON and JSON Lines
    records    rows and objects with their place in the file, and typed access to their fields
    forms      records or texts of a file of any of these forms, by the file's ending
    lists      one item per line: classes, words
    folders    image files below a folder, class folders
    images     the decoder: RGB, 8 bits, upright

They return a value or raise `InputError`: one line that names the file, the line or record, the field, the value and
the way out.
"""

from launch.reading.errors import InputError, MissingInput, printable, shown

__all__ = ["InputError", "MissingInput", "printable", "shown"]
