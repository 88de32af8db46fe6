"""Results as rows, tables, text and one page; comparison of two results."""
