"""A report on results: sections by grid, statistics over seeds, figures like the paper's, in Markdown."""
