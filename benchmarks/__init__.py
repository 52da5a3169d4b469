"""Claims of the papers and comparisons with other libraries."""
